"""Scores of held-out views, and the record that names how they were taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from splatopt.core.checks import InputError
from splatopt.core.version import __version__
from splatopt.data import Capture
from splatopt.data.capture import capture_name
from splatopt.metrics.image import SSIM_WINDOW, ViewScore, psnr
from splatopt.raster.threads import quiet_torch
from splatopt.scene.exposure import apply_map, solve_maps, view_system
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.config import TrainConfig

MAX_DECIBELS = 100.0
"""PSNR of a render that equals its photograph, dB; infinity would have no mean and no JSON."""

PROTOCOL = (
    "renders clamped to [0, 1] against 8-bit photographs at the training size; PSNR over all pixels and channels "
    "per view, at most 100 dB; SSIM with a Gaussian window of 11 pixels, sigma 1.5; means over views"
)

FITTED_PROTOCOL = (
    "of each view a colour map M c + b is fitted to the left half, and the right half scored: psnr with the map, "
    "clamped to [0, 1], and plain_psnr of the same half without; dB over all pixels and channels, at most 100; means "
    "over views"
)


@dataclass(frozen=True)
class FittedScore:
    """How near the right half of one view comes to its photograph.

    Attributes:
        name: The view's name in its capture.
        psnr: After the colour map that was fitted to the left half, dB.
        plain_psnr: As it is rendered, dB.
    """

    name: str
    psnr: float
    plain_psnr: float


@dataclass(frozen=True)
class Scores:
    """Scores of a set of views.

    Attributes:
        split: Name of the capture's split.
        subset: Which part of it was scored: test, or train where there are no test views.
        views: Score of each view.
        fitted: Scores of right halves, after a colour map fitted to the left ones; none where none were asked for.
    """

    split: str
    subset: str
    views: tuple[ViewScore, ...]
    fitted: tuple[FittedScore, ...] = ()

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

    @property
    def fitted_psnr(self) -> float:
        """Mean over ``fitted`` of the PSNR with the map, dB."""
        return sum(view.psnr for view in self.fitted) / len(self.fitted)

    @property
    def fitted_plain_psnr(self) -> float:
        """Mean over ``fitted`` of the PSNR without the map, dB."""
        return sum(view.plain_psnr for view in self.fitted) / len(self.fitted)

    @property
    def fitted_sentence(self) -> str:
        """What ``fitted`` comes to, in words."""
        return (
            f"right halves of {len(self.fitted)} {self.subset} views: PSNR {self.fitted_psnr:.2f} dB with a colour "
            f"map fitted to the left halves, {self.fitted_plain_psnr:.2f} dB without"
        )

    def to_json(self) -> dict[str, Any]:
        """Return means and views as JSON values; shares of pixels only where masks leave some out."""
        left_out = () if self.counted < 1 else ("counted",)
        every = [{name: value for name, value in asdict(view).items() if name not in left_out} for view in self.views]
        values: dict[str, Any] = {"psnr": self.psnr, "ssim": self.ssim, "views": every}
        if self.fitted:
            views = [asdict(view) for view in self.fitted]
            values["fitted"] = {
                "protocol": FITTED_PROTOCOL,
                "psnr": self.fitted_psnr,
                "plain_psnr": self.fitted_plain_psnr,
                "views": views,
            }
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], split: str, subset: str) -> Scores:
        """Return the scores that :meth:`to_json` gave; raises InputError where they are none."""
        try:
            fitted = (values.get("fitted") or {"views": ()})["views"]
            views = tuple(ViewScore(**view) for view in values["views"])
            return cls(split, subset, views, tuple(FittedScore(**view) for view in fitted))
        except (KeyError, TypeError) as error:
            raise InputError(f"these are not scores of views ({error}); run splatopt eval again") from error


def evaluate(
    objective: PhotometricObjective,
    capture: Capture,
    watch: Callable[[int], None] | None = None,
    *,
    fitted: bool = False,
) -> Scores:
    """Score the capture's test views, or its training views where it has no others; as they are rendered.

    Args:
        objective: Bound to the capture's cameras and photographs.
        capture: Names the split.
        watch: Called after each view with the number of views done.
        fitted: Score right halves after a colour map fitted to the left ones as well; it is done anyway where the
            objective has colour maps of its photographs.
    """
    subset = "test" if capture.split.test else "train"
    with quiet_torch(objective.renderer):
        scores = objective.evaluate(scored_views(capture), watch)
        halves = _right_halves(objective, scored_views(capture)) if fitted or objective.exposure is not None else ()
    # The score stands first in min(), which returns a NaN only from there.
    capped = tuple(replace(score, psnr=min(score.psnr, MAX_DECIBELS)) for score in scores)
    return Scores(capture.split.name, subset, capped, halves)


def _right_halves(objective: PhotometricObjective, views: Sequence[int]) -> tuple[FittedScore, ...]:
    """Score right halves after a map fitted to the left ones; views whose right half has no weight are left out."""
    scores = []
    for view in views:
        camera, pixels, weights = objective.cameras[view], objective.images[view], objective.weights_of(view)
        image = objective.renderer.render(objective.cloud, camera, objective.options).image.float()
        middle = camera.width // 2
        if weights is not None and not weights[:, middle:].any():
            continue
        left_weights, right_weights = (None, None) if weights is None else (weights[:, :middle], weights[:, middle:])
        fitted = solve_maps(view_system(image[:, :middle], pixels[:, :middle], left_weights))
        right, target = image[:, middle:], pixels[:, middle:].to(image) / 255
        values = [psnr(colors.clamp(0, 1), target, right_weights) for colors in (apply_map(fitted, right), right)]
        scores.append(FittedScore(camera.name, *(min(value, MAX_DECIBELS) for value in values)))
    return tuple(scores)


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
    for view in scored_views(capture):
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


def scored_views(capture: Capture) -> tuple[int, ...]:
    """Return the held-out views, or the training views where there are no others."""
    return capture.split.test or capture.split.train


def evaluation_record(
    config: TrainConfig, before: Scores | None, after: Scores | None, *, steps: int, seconds: float, gaussians: int
) -> dict[str, Any]:
    """Return what ``eval.json`` holds.

    Args:
        config: What the run was told.
        before: Scores before the first step.
        after: Scores now; None where training has not come to an end.
        steps: Optimizer steps taken.
        seconds: Seconds of training, evaluation not counted.
        gaussians: Number of Gaussians scored.
    """
    some = after or before
    record: dict[str, Any] = {
        **_what_was_run(config),
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


def _what_was_run(config: TrainConfig) -> dict[str, str | None]:
    """What tells one run's scores from another's, in words."""
    schedule = config.schedule
    by = {"optimizer": schedule.optimizer} if schedule.stages is None else {"stages": schedule.stages}
    return {
        "version": __version__,
        "capture": capture_name(Path(config.data.capture)),
        **by,
        "density": config.density.density,
        "recipe": schedule.recipe if schedule.is_planned else None,
    }
