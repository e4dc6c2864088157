"""A training loop as users of gsplat write it, on a CPU: our ``rasterization``, an Adam for each parameter, growth.

``python examples/gsplat_loop.py`` trains on a small synthetic capture, ``python examples/gsplat_loop.py CAPTURE 1000``
on a folder that splatopt reads, for so many steps. It needs gsplat, of which it uses ``DefaultStrategy`` alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from gsplat.strategy import DefaultStrategy
from torch import Tensor

import splatopt
from splatopt.data import make_capture
from splatopt.metrics.image import psnr
from splatopt.torch_api import rasterization

RATES = {"means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}
"""3DGS' rates; that of the means is in scene extents."""


def render(params: torch.nn.ParameterDict, camera: splatopt.Camera, degree: int) -> tuple[Tensor, Tensor, dict]:
    intrinsics = torch.tensor([[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]])
    return rasterization(
        params["means"],
        params["quats"],
        params["scales"].exp(),
        params["opacities"].sigmoid(),
        torch.cat([params["sh0"], params["shN"]], dim=1),
        camera.world_to_camera.float()[None],
        intrinsics[None],
        camera.width,
        camera.height,
        sh_degree=degree,
        packed=False,
    )


def mean_psnr(params: torch.nn.ParameterDict, capture: splatopt.Capture) -> float:
    scores = []
    for view in capture.split.test:
        with torch.no_grad():
            image, _, _ = render(params, capture.cameras[view], 3)
        scores.append(psnr(image[0].clamp(0, 1), capture.images[view] / 255))
    return sum(scores) / len(scores)


def train(capture: splatopt.Capture, steps: int) -> None:
    cloud = splatopt.start_from_points(capture.points.positions, capture.points.colors)
    names = {"means": "means", "log_scales": "scales", "quats": "quats", "logit_opacities": "opacities"}
    values = {theirs: getattr(cloud, ours) for ours, theirs in names.items()}
    values |= {"sh0": cloud.sh_dc[:, None], "shN": cloud.sh_rest}
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})
    rates = {**RATES, "means": RATES["means"] * capture.extent}
    optimizers = {name: torch.optim.Adam([{"params": params[name], "lr": rates[name]}], eps=1e-15) for name in params}
    strategy = DefaultStrategy(refine_start_iter=steps // 10, refine_stop_iter=steps // 2, refine_every=25)
    strategy.check_sanity(params, optimizers)
    state, before, rows = strategy.initialize_state(capture.extent), mean_psnr(params, capture), len(cloud)
    torch.manual_seed(0)
    for step in range(steps):
        view = capture.split.train[int(torch.randint(len(capture.split.train), ()))]
        image, _, info = render(params, capture.cameras[view], min(3, 10 * step // steps))
        strategy.step_pre_backward(params, optimizers, state, step, info)
        (image[0] - capture.images[view] / 255).abs().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, info)
    print(f"{rows} -> {len(params['means'])} Gaussians, {before:.2f} -> {mean_psnr(params, capture):.2f} dB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        synthetic = len(sys.argv) < 2
        folder = (
            make_capture(Path(temporary) / "capture", views=16, width=96, height=72, points=1000)
            if synthetic
            else sys.argv[1]
        )
        train(splatopt.load_capture(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
