"""What every native pass makes of fixed numbers on one instruction set."""

from __future__ import annotations

import torch
from torch import Tensor

from meta.clouds import RATES, SMALL, begin, random_sequence, stirred
from optim.awkward import AwkwardCloud
from raster.cases import find_case, random_cloud
from raster.pixel_loops import observed_by, statistics_of
from splatopt.core import native
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.schema import PACKED_BLOCK
from splatopt.meta.fused import FusedNetwork
from splatopt.meta.network import LearnedNetwork
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import WeightedSum


def rendered(isa: str) -> dict[str, Tensor]:
    """Of a view: image, loss and gradient, residuals and products, curvature."""
    case, renderer = find_case("ordinary"), NativeRenderer(2, isa)
    cloud = random_cloud(torch.Generator().manual_seed(5), 1500, scale=0.05).to(torch.float32)
    rendering = renderer.render(cloud, case.camera, case.options)
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    loss = renderer.accumulate_gradient(cloud, case.problem(), WeightedSum(gradient), seen)
    results = {
        "image": torch.cat([rendering.image.flatten(), rendering.alpha.flatten(), rendering.depth.flatten()]),
        "loss": torch.tensor([loss.loss, loss.squared_error], dtype=torch.float64),
        "gradient": _joined(gradient),
        "statistics": _joined(statistics_of(renderer, cloud, case.problem())),
        "gradient statistics": _joined(observed_by(renderer, cloud, case.problem())[0]),
    }
    losses: dict[str, Loss] = {"l1-ssim": L1Ssim(), "squared": SquaredError()}
    for name, kind in losses.items():
        results |= {f"{what} of {name}": value for what, value in _products(renderer, cloud, case, kind).items()}
    return results


def _products(renderer, cloud, case, loss: Loss) -> dict[str, Tensor]:
    view = (cloud, case.problem(loss))
    generator = torch.Generator().manual_seed(1)
    tangent = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in cloud.tensors.items()}
    residuals = renderer.residuals(*view)
    cotangent = torch.randn(residuals.shape, generator=generator)
    transposed = {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}
    renderer.vjp(*view, cotangent, WeightedSum(transposed))
    diagonal = {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}
    blocks, rest = torch.zeros(len(cloud), PACKED_BLOCK), torch.zeros_like(cloud.sh_rest)
    renderer.accumulate_diagonal(*view, WeightedSum(diagonal))
    renderer.accumulate_blocks(*view, WeightedSum({"blocks": blocks, "sh_rest": rest}))
    return {
        "residuals": residuals,
        "jvp": renderer.jvp(*view, tangent),
        "vjp": _joined(transposed),
        "diagonal": _joined(diagonal),
        "blocks": torch.cat([blocks.flatten(), rest.flatten()]),
    }


STEPS = ("adam", "sign-tr", "adam-tr", "tr2", "block-gn")


def stepped(isa: str) -> dict[str, Tensor]:
    """Of the fused steps: how far each moves a cloud from the same gradients and curvature; and the other passes."""
    results = {}
    for name in STEPS:
        scene, entry = AwkwardCloud(torch.float32, 700, 3), find_optimizer(name)
        before = _joined(scene.values)
        optimizer = entry.optimizer(scene, entry.options(), torch.Generator().manual_seed(0))
        optimizer.threads, optimizer.instructions = 2, isa
        optimizer.step(None, Progress(0, 10))
        results[f"{name}'s step"] = _joined(scene.values) - before
    workers = native.workers(2, isa)
    scene = AwkwardCloud(torch.float32, 700, 3)
    kept, fresh = scene.gauss_newton_blocks(None).blocks, scene.gauss_newton_blocks(None).blocks.flip(0).contiguous()
    weights = torch.rand(700, generator=torch.Generator().manual_seed(0))
    form = workers.block_form(fresh, native.cloud_tensors(dict(scene.values)))
    folded = kept.clone()
    workers.fold_blocks(folded, fresh, weights)
    points, near = torch.randn(900, 3, generator=torch.Generator().manual_seed(2)), torch.empty(900, 4).long()
    native.nearest_others(points, near, 2, isa)
    return results | {
        "block form": torch.tensor([form], dtype=torch.float64),
        "folded blocks": folded,
        "nearest others": near,
        "learned step": _learned(isa),
    }


@torch.no_grad()
def _learned(isa: str) -> Tensor:
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    sequence = random_sequence(rows=301, rest=3, steps=1)
    parameters = {name: value.float() for name, value in sequence.parameters.items()}
    before = _joined(parameters)
    near = torch.empty(301, SMALL.neighbours).long()
    native.nearest_others(parameters["means"].contiguous(), near, 1)
    gradient = {name: value.float() for name, value in sequence.gradients[0].items()}
    state = begin(parameters, network)
    passes, seen = FusedNetwork(network, 2, isa), sequence.seen[0]
    evaluation = Evaluation(sequence.losses[0], gradient, seen, {})
    passes.step(parameters, evaluation, seen, state, near, RATES, 2.0, None)
    return _joined(parameters) - before


def _joined(tensors) -> Tensor:
    return torch.cat([value.detach().clone().flatten() for value in tensors.values()])
