"""A cloud of Gaussians that fused steps might get wrong, as an objective."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.curvature.blocks import pack_blocks, unpack_blocks
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.hellinger import HellingerRadii


class AwkwardCloud(Quadratic):
    """A quadratic over a cloud with every awkward Gaussian: spheres, needles, clear, opaque, dark ones."""

    def __init__(self, dtype: torch.dtype, rows: int, rest: int, device: torch.device | str = "cpu") -> None:
        super().__init__(rows=rows, dtype=dtype)
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        values = {
            "means": 3 * normal(rows, 3),
            "log_scales": 2 * normal(rows, 3) - 3,
            "quats": normal(rows, 4) * torch.exp(normal(rows, 1)),
            "logit_opacities": 4 * normal(rows),
            "sh_dc": 1.5 * normal(rows, 3),
            "sh_rest": normal(rows, rest, 3),
        }
        values["log_scales"][0] = -4.0
        values["log_scales"][1] = torch.tensor([-3.0, -3.0 + 1e-4, -3.0 - 2e-4])
        values["log_scales"][2] = torch.tensor([-20.0, 3.0, 0.0])
        values["logit_opacities"][3:5] = torch.tensor([-30.0, 30.0])
        self.values = {name: value.to(device, dtype) for name, value in values.items()}
        self.targets = {name: (value + normal(*value.shape)).to(device, dtype) for name, value in values.items()}
        self.curvature = {
            name: (torch.exp(4 * normal(*value.shape)) * (normal(*value.shape) > -1)).to(device, dtype)
            for name, value in values.items()
        }

        self.asked = 0

    def gradient(self, batch: object) -> Evaluation:
        """Noise that the values do not change: no rounding of theirs may turn the sign of a momentum."""
        self.asked += 1
        generator = torch.Generator().manual_seed(self.asked)
        noise = {name: torch.randn(value.shape, generator=generator) for name, value in self.values.items()}
        gradient = {name: value.to(self.values[name]) for name, value in noise.items()}
        seen = (torch.rand(len(noise["means"]), generator=generator) < 0.8).to(self.values["means"].device)
        return Evaluation(loss=1.0, gradient=gradient, seen=seen, metrics={})

    def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
        """Blocks of full rank, of low rank, and none at all."""
        generator = torch.Generator().manual_seed(self.asked)
        rows = len(self.values["means"])
        roots = torch.randn(rows, 14, 17, generator=generator) * torch.exp(
            2 * torch.randn(rows, 14, 1, generator=generator)
        )
        roots[::5, :, 4:] = 0
        roots[::7] = 0
        blocks = pack_blocks((roots @ roots.mT).double())
        blocks = blocks.to(self.values["means"])
        return GaussNewtonBlocks(BLOCK_TENSORS, blocks, {"sh_rest": self.curvature["sh_rest"].clone()})


class Indefinite(AwkwardCloud):
    """Blocks with negative eigenvalues of up to 3e-4 of the trace, as rounding leaves those of huge Gaussians."""

    def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
        found = super().gauss_newton_blocks(batch)
        blocks = unpack_blocks(found.blocks)
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(blocks.shape, generator=generator).to(blocks)
        trace = blocks.diagonal(dim1=1, dim2=2).sum(dim=1)
        blocks += 3e-5 * trace[:, None, None] * (noise + noise.mT)
        return replace(found, blocks=pack_blocks(blocks))


def check_indefinite_blocks(device: torch.device | str) -> None:
    """Check that a fused step on indefinite blocks stays within its balls, however small the multipliers are."""
    options = BlockGaussNewtonOptions(damping=0.0, epsilon_start=1e-2, factorisations=4)
    scene = Indefinite(torch.float32, 300, 3, device)
    before = {name: value.clone() for name, value in scene.values.items()}
    blocks = unpack_blocks(scene.gauss_newton_blocks(None).blocks.double())
    assert (torch.linalg.eigvalsh(blocks)[:, 0] < -1e-5 * blocks.diagonal(dim1=1, dim2=2).sum(dim=1)).sum() > 40
    BlockGaussNewton(scene, options).step(None, Progress(0, 10))
    step = flattened(scene.values) - flattened(before)
    radii = HellingerRadii(options, scene.length_scale).radii(before, options.epsilon_start)
    eta = flattened({name: value.expand_as(before[name]) for name, value in radii.items()})
    assert torch.isfinite(step).all()
    # Turned quaternions keep their lengths, which no model sees.
    assert ((step / eta)[:, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]].norm(dim=1) < 1 + 1e-3).all()


def flattened(tensors: Tensors, names: tuple[str, ...] = BLOCK_TENSORS) -> Tensor:
    """The rows of the named tensors side by side, float64 on the CPU."""
    return torch.cat([tensors[name].double().cpu().reshape(len(tensors[name]), -1) for name in names], dim=1)
