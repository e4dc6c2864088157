"""A cloud of Gaussians that fused steps might get wrong, as an objective."""

from __future__ import annotations

import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Tensors
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.curvature.blocks import pack_blocks


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


def flattened(tensors: Tensors, names: tuple[str, ...] = BLOCK_TENSORS) -> Tensor:
    """The rows of the named tensors side by side, float64 on the CPU."""
    return torch.cat([tensors[name].double().cpu().reshape(len(tensors[name]), -1) for name in names], dim=1)
