"""Scores of held-out views, and the record that names how they were taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from splatopt.core.checks import InputError
from splatopt.data import Capture
from splatopt.metrics.image import SSIM_WINDOW
from splatopt.raster.threads import quiet_torch
from splatopt.scene.photometric import PhotometricObjective, ViewScore

MAX_DECIBELS = 100.0
"""PSNR of a render that equals its photograph, dB; infinity would have no mean and no JSON."""

PROTOCOL = (
    "renders clamped to [0, 1] against 8-bit photographs at the training size; PSNR over all pixels and channels "
    "per view, at most 100 dB; SSIM with a Gaussian window of 11 pixels, sigma 1.5; means over views"
)


@dataclass(frozen=True)
class Scores:
    """Scores of a set of views.

    Attributes:
        split: Name of the capture's split.
        subset: Which part of it was scored: test, or train where there are no test views.
        views: Score of each view.
    """

    split: str
    subset: str
    views: tuple[ViewScore, ...]

    @property
    def psnr(self) -> float:
        """Mean PSNR over the views, dB."""
        return sum(view.psnr for view in self.views) / len(self.views)

    @property
    def ssim(self) -> float:
        """Mean SSIM over the views."""
        return sum(view.ssim for view in self.views) / len(self.views)

    @property
    def counted(self) -> float:
        """Mean share of the views' pixels that the scores are of; 1 without masks."""
        return sum(view.counted for view in self.views) / len(self.views)

    @property
    def over_pixels(self) -> str:
        """Which pixels the scores are of, in words that follow; empty where they are of all."""
        return f" over the {100 * self.counted:.1f} % of pixels that masks leave" if self.counted < 1 else ""

    @property
    def protocol(self) -> str:
        """How the scores were taken, in words."""
        left_out = ", masked ones being 0 in both images where a window of SSIM sees them"
        return f"{PROTOCOL};{self.over_pixels}{left_out}" if self.over_pixels else PROTOCOL

    def to_json(self) -> dict[str, Any]:
        """Return means and views as JSON values; shares of pixels only where masks leave some out."""
        left_out = () if self.counted < 1 else ("counted",)
        views = [{name: value for name, value in asdict(view).items() if name not in left_out} for view in self.views]
        return {"psnr": self.psnr, "ssim": self.ssim, "views": views}

    @classmethod
    def from_json(cls, values: dict[str, Any], split: str, subset: str) -> Scores:
        """Return the scores that :meth:`to_json` gave; raises InputError where they are none."""
        try:
            return cls(split, subset, tuple(ViewScore(**view) for view in values["views"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"these are not scores of views ({error}); run splatopt eval again") from error


def evaluate(objective: PhotometricObjective, capture: Capture, watch: Callable[[int], None] | None = None) -> Scores:
    """Score the capture's test views, or its training views where it has no others.

    Args:
        objective: Bound to the capture's cameras and photographs.
        capture: Names the split.
        watch: Called after each view with the number of views done.
    """
    subset = "test" if capture.split.test else "train"
    with quiet_torch(objective.renderer):
        scores = objective.evaluate(_scored(capture), watch)
    # The score stands first in min(), which returns a NaN only from there.
    capped = tuple(replace(score, psnr=min(score.psnr, MAX_DECIBELS)) for score in scores)
    return Scores(capture.split.name, subset, capped)


def scores_before(record: Mapping[str, Any]) -> Scores | None:
    """Return the scores from before the first step that a run's record holds; None where it holds none."""
    if not record.get("before"):
        return None
    return Scores.from_json(record["before"], record.get("split", ""), record.get("subset", ""))


def check_scorable(capture: Capture) -> None:
    """Make sure that the views to be scored are large enough for SSIM's window, and are not all masked.

    Raises:
        InputError: One is not; names it and its size.
    """
    for view in _scored(capture):
        camera = capture.cameras[view]
        if min(camera.width, camera.height) < SSIM_WINDOW:
            raise InputError(
                f"view {camera.name} is {camera.width}x{camera.height} pixels, and scoring needs at least "
                f"{SSIM_WINDOW}x{SSIM_WINDOW}; use larger photographs, a larger --max-side or a smaller --downscale"
            )
        seen, border = capture.images.seen(view), SSIM_WINDOW // 2
        if seen is not None and not seen[border:-border, border:-border].any():
            raise InputError(
                f"the mask of view {camera.name} leaves no pixel that could be scored, {border} or more from the "
                "border; take the view or its mask away"
            )


def _scored(capture: Capture) -> tuple[int, ...]:
    """The held-out views, or the training views where there are no others."""
    return capture.split.test or capture.split.train


def evaluation_record(
    before: Scores | None, after: Scores | None, *, steps: int, seconds: float, gaussians: int
) -> dict[str, Any]:
    """Return what ``eval.json`` holds.

    Args:
        before: Scores before the first step.
        after: Scores now; None where training has not come to an end.
        steps: Optimizer steps taken.
        seconds: Seconds of training, evaluation not counted.
        gaussians: Number of Gaussians scored.
    """
    some = after or before
    record: dict[str, Any] = {
        "protocol": some.protocol if some else PROTOCOL,
        "split": some.split if some else None,
        "subset": some.subset if some else None,
        "steps": steps,
        "seconds": seconds,
        "gaussians": gaussians,
    }
    if after:
        record |= after.to_json()
    record["before"] = before.to_json() if before else None
    return record
