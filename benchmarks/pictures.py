"""The pictures of README and the documentation, from captures that splatopt makes itself.

::

    python -m benchmarks.pictures --out docs/pictures

``training.webp`` is a scene while it trains, the camera going around it; ``views.webp`` a held-out view as
photographed, before the first step and after the last; ``report.webp`` the views on that run's page, for which
Chromium has to be there. ``optimizers.svg`` has the held-out PSNR of several optimizers against steps, or with
``--against seconds`` against seconds, which say something on an idle machine alone. All is seeded; the runs are kept in
a folder that ``--runs`` names.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.data.camera_paths import orbit
from splatopt.data.procedural import make_capture
from splatopt.raster.render import make_renderer
from splatopt.raster.types import RenderOptions
from splatopt.report.charts import Mark, Series, chart_file
from splatopt.report.finished import report_finished
from splatopt.report.pictures import run_pictures
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores
from splatopt.train.events import Evaluated, Event, Stepped
from splatopt.train.loop import train
from splatopt.train.machine import open_machine
from splatopt.train.progress import ProgressLine
from splatopt.train.result import TrainResult

FRAMES = 40
FRAME_MILLISECONDS = 120
LAST_FRAME_MILLISECONDS = 1500
OPTIMIZERS = {
    "adam": Mark.LINE,
    "adam-tuned": Mark.SECOND,
    "tr2": Mark.THIRD,
    "block-gn": Mark.FOURTH,
    "learned": Mark.FIFTH,
}
VIEWS_HEADING = "<h2>Side by side</h2>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Watcher:
    """Keeps the scene after some steps of a run, and the scores of held-out views.

    Attributes:
        clouds: Scenes in the training frame, by step.
        scores: Seconds of training and scores, by step.
    """

    def __init__(self, steps: Sequence[int] = ()) -> None:
        self._steps = frozenset(steps)
        self.clouds: dict[int, GaussianCloud] = {}
        self.scores: dict[int, tuple[float, Scores]] = {}

    def __call__(self, event: Event) -> None:
        """Take what an event of the run brings."""
        if isinstance(event, Evaluated):
            self.scores[event.step] = event.seconds, event.scores
        if isinstance(event, Evaluated | Stepped) and event.step in self._steps:
            self.clouds[event.step] = event.cloud.clone()


def frame_steps(steps: int, frames: int) -> list[int]:
    """Return after which step each frame is: 0, then ever longer apart, as a scene changes most at first."""
    return [round(steps * (index / (frames - 1)) ** 2.5) for index in range(frames)]


def draw_training(result: TrainResult, watcher: Watcher, steps: Sequence[int], path: Path) -> None:
    """Write the scene as it was after each of ``steps``, a camera going around it."""
    local = result.capture.localised(result.frame)
    cameras = orbit([local.cameras[view] for view in local.split.train], len(steps))
    frames = [_render(watcher.clouds[step], camera) for step, camera in zip(steps, cameras, strict=True)]
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        quality=72,
        method=6,
        minimize_size=True,
    )


def _render(cloud: GaussianCloud, camera: Camera) -> Image.Image:
    image = make_renderer("native").render(cloud, camera, RenderOptions((0.0, 0.0, 0.0))).image
    return _image((image.clamp(0, 1) * 255).round())


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.cpu().numpy().astype(np.uint8))


def draw_views(result: TrainResult, path: Path) -> None:
    """Write one held-out view as photographed, before the first step and after the last, side by side."""
    capture, cloud = result.capture.localised(result.frame), result.cloud.in_local(result.frame)
    (view,) = run_pictures(result.config, capture, cloud, result.steps, open_machine(result.config), 1)
    assert view.start is not None
    images = [_image(one) for one in (view.image, view.start, view.trained)]
    width, height, gap = *images[0].size, 6
    row = Image.new("RGB", (len(images) * width + (len(images) - 1) * gap, height), "white")
    for index, image in enumerate(images):
        row.paste(image, (index * (width + gap), 0))
    row.save(path, quality=80, method=6)


def draw_report(page: Path, path: Path) -> bool:
    """Write a picture of a run's page, without the numbers and curves that depend on the machine.

    Returns:
        Whether a browser is there to make it.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    text = page.read_text(encoding="utf-8")
    head, views, rest = (text.index(mark) for mark in ('<section class="numbers">', VIEWS_HEADING, "<h2>Command</h2>"))
    shown = page.with_name("shown.html")
    shown.write_text(f"{text[:head]}{text[views:rest]}</main></body></html>", encoding="utf-8")
    shot = page.with_suffix(".png")
    size = ["--window-size=1100,1000", "--hide-scrollbars", f"--screenshot={shot}"]
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", *size, shown.resolve().as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    Image.open(shot).convert("RGB").save(path, quality=80, method=6)
    return True


def draw_optimizers(readings: dict[str, Watcher], against: str, path: Path) -> None:
    """Write the chart of held-out PSNR."""
    series = []
    for name, watcher in readings.items():
        x = [step if against == "steps" else seconds for step, (seconds, _) in watcher.scores.items()]
        series.append(Series(name, x, [scores.psnr for _, scores in watcher.scores.values()], OPTIMIZERS[name]))
    path.write_text(chart_file(f"Held-out PSNR (dB) against {against}", against, series), encoding="utf-8")


def main() -> int:
    """Make the captures, train, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder of the pictures")
    parser.add_argument(
        "--runs", type=Path, help="folder of captures and runs, not there yet; a temporary one if left out"
    )
    parser.add_argument("--against", choices=("steps", "seconds"), default="steps", help="of the chart of optimizers")
    parser.add_argument(
        "--steps", type=int, default=400, help="of the scene that is shown; optimizers take a quarter more"
    )
    parser.add_argument("--width", type=int, default=360, help="of photographs, in pixels")
    parser.add_argument("--threads", type=int, default=0, help="0 for all processors")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = given.runs or Path(folder)
        draw_scene(given, runs)
        compare(given, runs)
    return 0


def draw_scene(given: argparse.Namespace, runs: Path) -> None:
    """Train one scene and draw it."""
    capture = make_capture(runs / "still-life", 0, 40, given.width, given.width * 3 // 4, 8000)
    steps = frame_steps(given.steps, FRAMES)
    watcher = Watcher(steps)
    settings = {"optimizer": "block-gn", "density": "gain", "steps": given.steps, "sh_interval": 0}
    config = TrainConfig.of(capture, **settings, out=runs / "run", threads=given.threads)
    result = train(config, [watcher, ProgressLine()])
    draw_training(result, watcher, steps, given.out / "training.webp")
    draw_views(result, given.out / "views.webp")
    if not draw_report(report_finished(result), given.out / "report.webp"):
        print("no Chromium here; report.webp stays as it is", file=sys.stderr)


def compare(given: argparse.Namespace, runs: Path) -> None:
    """Train with every optimizer and draw the chart."""
    size = max(24, given.width * 3 // 5)
    capture = make_capture(runs / "compared", 1, 40, size, size * 3 // 4, 4000)
    readings = {}
    for name in OPTIMIZERS:
        watcher = readings[name] = Watcher()
        settings = {"optimizer": name, "steps": given.steps * 5 // 4, "eval_every": max(1, given.steps // 20)}
        config = TrainConfig.of(capture, **settings, sh_interval=0, out=runs / name, threads=given.threads)
        train(config, [watcher, ProgressLine()])
    draw_optimizers(readings, given.against, given.out / "optimizers.svg")


if __name__ == "__main__":
    sys.exit(main())
