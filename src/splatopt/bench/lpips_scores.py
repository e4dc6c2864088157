"""LPIPS of a finished cell, where its weights are on the machine."""

from __future__ import annotations

from pathlib import Path

import torch

from splatopt.bench.records import CellRecord
from splatopt.metrics.lpips import INPUT_RANGE, MIN_SIDE, NETWORKS, Lpips, find_lpips
from splatopt.raster.threads import quiet_torch
from splatopt.train.result import TrainResult
from splatopt.train.run import open_run


def measure_lpips(result: TrainResult, folder: str | None = None) -> CellRecord:
    """Return LPIPS of the scored views at the last step: each view's and the mean, or why it is left out.

    Args:
        result: A finished run.
        folder: Where the backbones' weights lie; PyTorch's hub folder when None.
    """
    nets = {network: find_lpips(network, Path(folder) if folder else None) for network in NETWORKS}
    usable = {network: net for network, net in nets.items() if isinstance(net, Lpips)}
    left_out = [net for net in nets.values() if isinstance(net, str)]
    if not usable:
        return {"lpips": {}, "lpips_left_out": left_out}
    run = open_run(result.folder)
    objective = run.objective(result.capture)
    capture, options, renderer = result.capture, objective.options, objective.renderer
    views = capture.split.test or capture.split.train
    if min(min(capture.cameras[view].width, capture.cameras[view].height) for view in views) < MIN_SIDE:
        return {
            "lpips": {},
            "lpips_left_out": [f"LPIPS is left out: its networks need views of {MIN_SIDE} pixels a side"],
        }
    scores: dict[str, list[float]] = {network: [] for network in usable}
    for view in views:
        with quiet_torch(renderer):
            image = renderer.render(objective.cloud, objective.cameras[view], options).image.clamp(0, 1)
        target, seen = capture.images[view].float() / 255, capture.images.seen(view)
        if seen is not None:  # masked pixels are equal, and so add nothing
            image = torch.where(seen[:, :, None], image.cpu(), target)
        for network, net in usable.items():
            scores[network].append(net(image.cpu(), target))
    means = {network: sum(values) / len(values) for network, values in scores.items()}
    return {"lpips": means, "lpips_views": scores, "lpips_left_out": left_out, "lpips_range": INPUT_RANGE}
