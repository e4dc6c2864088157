"""How long should the step of a central difference of gradients be? Its products against exact ones of the reference.

Fox, small enough for the dense reference in float64, after some steps of Adam; random signs on all parameters. Prints
the mean relative error and the mean cosine over a few views, as Markdown::

    python -m benchmarks.hessian_step --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.estimators import trained_fox
from splatopt.core.objective import Tensors
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.hessian import CentralDifference
from splatopt.raster.losses import L1Ssim
from splatopt.raster.render import make_renderer
from splatopt.scene.photometric import PhotometricObjective

STEPS = (3e-2, 1e-2, 4.9e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
SIZES = ((24, 30), (48, 300), (80, 1000))
"""Longest side of the photographs in pixels, and Gaussians."""


def joined(tensors: Tensors) -> Tensor:
    """All tensors end to end, in float64."""
    return torch.cat([part.double().flatten() for part in tensors.values()])


def compare(native: PhotometricObjective, ssim_weight: float, views: list[int]) -> dict[float, tuple[float, float]]:
    """Return for each step the mean relative error of the product, and its mean cosine with the exact one."""
    native.loss = L1Ssim(ssim_weight)
    dense = PhotometricObjective(
        native.cloud.to(torch.float64),
        native.cameras,
        native.images,
        make_renderer("reference"),
        native.options,
        loss=native.loss,
    )
    generator = torch.Generator().manual_seed(0)
    found = dict.fromkeys(STEPS, (0.0, 0.0))
    for view in views:
        signs = {name: rademacher(value, generator) for name, value in native.parameters.items()}
        exact = joined(dense.exact_hvp([view], {name: part.double() for name, part in signs.items()}))
        for step, (error, cosine) in found.items():
            product = joined(CentralDifference(step).product(native, [view], signs))
            off = float((product - exact).norm() / exact.norm()) / len(views)
            along = float(torch.nn.functional.cosine_similarity(product, exact, dim=0)) / len(views)
            found[step] = (error + off, cosine + along)
    return found


def main() -> int:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hessian_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with fox")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam before")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 9, 17], help="views that are averaged over")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = []
    for side, points in SIZES:
        objective = trained_fox(arguments.data, arguments.steps, side, points)
        camera = objective.cameras[0]
        for weight in (0.2, 1.0):
            title = f"{points} on {camera.width}×{camera.height}, λ = {weight:g}"
            columns.append((title, compare(objective, weight, arguments.views)))
    print("| relative_step | " + " | ".join(title for title, _ in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for step in STEPS:
        cells = (f"{found[step][0]:.2g}, {found[step][1]:.2f}" for _, found in columns)
        print(f"| {step:.1e} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
