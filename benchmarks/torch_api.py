"""``rasterization`` against our own trainer: `python -m benchmarks.torch_api [--data FOLDER] [--threads N]`.

For the same views: the trainer's forward and backward pass, from its gradient of the image, and those of
``splatopt.torch_api.rasterization`` in plain PyTorch, from the same one, harmonics of degree 3 in three channels. They
take turns, and the ratio of their medians is what counts; its bar is 1.15. On one thread it is processor time, which
others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.loads import Load, fox, garden, made_up
from splatopt.core.native import default_threads
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.gsplat_peer import rasterization_arguments
from splatopt.raster.types import RenderOptions
from splatopt.torch_api import rasterization

BAR = 1.15


def passes_of(load: Load, threads: int, packed: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward of the load's first view: the trainer's, and the rasterization's."""
    camera, options = load.cameras[0], RenderOptions(sh_degree=3)
    along = torch.randn(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(0))
    renderer, cloud = NativeRenderer(threads), load.cloud
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    given = rasterization_arguments(cloud.tensors, camera, options, "RGB") | {"packed": packed, "backgrounds": None}
    leaves = [given[name].detach().requires_grad_() for name in ("means", "quats", "scales", "opacities", "colors")]

    def trainer() -> None:
        renderer.draw(cloud, camera, options)
        renderer.backpropagate(cloud, options, along, gradient)

    def ours() -> None:
        for leaf in leaves:
            leaf.grad = None
        named = dict(zip(("means", "quats", "scales", "opacities", "colors"), leaves, strict=True))
        image, _, _ = rasterization(**{**given, **named})
        image.backward(along[None])

    return trainer, ours


def medians(functions: tuple[Callable[[], None], ...], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Median seconds of functions that take turns, after two rounds that do not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 2):
        for function, kept in zip(functions, seconds, strict=True):
            began = clock()
            function()
            kept.append(clock() - began)
    return [statistics.median(kept[2:]) for kept in seconds]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_api", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where fox and the garden are")
    parser.add_argument("--threads", type=int, default=0, help="0 for one per processor")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(words)
    threads = arguments.threads or default_threads()
    torch.set_num_threads(threads)
    loads = [made_up(20_000, 320, 240, 300.0), made_up(100_000, 640, 480, 300.0)]
    loads += [read(arguments.data) for read in (fox, garden) if arguments.data.is_dir()]
    above, clock = 0, time.process_time if threads == 1 else time.perf_counter
    for load in loads:
        for packed in (False, True):
            trainer, ours = medians(passes_of(load, threads, packed), arguments.repeats, clock)
            above += ours > BAR * trainer
            kind = "packed" if packed else "unpacked"
            print(f"{load.name}, {kind}: {1e3 * trainer:.2f} ms, {1e3 * ours:.2f} ms, {ours / trainer:.3f} of it")
    print(f"the bar is {BAR}, on {threads} threads")
    return int(above > 0)


if __name__ == "__main__":
    raise SystemExit(main())
