"""Coarse to fine: a run begins on photographs that are shrunk, as ``4:300,2:900`` says, and ends on whole ones.

A level shows the run the same views at sides 1/factor as long: photographs low-passed and resampled from the files as
``--downscale`` does, masks with them, intrinsics scaled with the size. Objective, losses (SSIM's window of 11 pixels
included), optimizers and density strategies see that and nothing else; what is scored is seen at full size.

**What was accumulated** at one level goes on at the next by these rules, r being how many times longer sides have
become. Losses and residuals are means over pixels, so that for what pixels of both sizes resolve

    ∂L/∂θ and JᵀJ keep their size; only what coarse pixels hid changes, by another factor for each row.

- Means of gradients and of their squares (momentum, Adam's moments): stay.
- Means of curvature (``tr2``, ``block-gn``, ``esgd`` and its like): stay, and count as one measurement, so that the
  first one of the new level moves them half way (:class:`splatopt.core.state.Measurements`).
- ``learned``: the lowest loss is forgotten, and running losses are rescaled to the first one of the new level.
- Gradient statistics of density strategies begin again. Their thresholds are of normalised device coordinates, of
  opacities and of world units: there is none in pixels to follow.
- The curvature of a pixel's motion, by which poses are refined, becomes 1/r² of itself.
- Solved exposures stay; photographs taken back by them are made anew.

Nothing of that needs a checkpoint of its own: the level follows from the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, runtime_checkable

from splatopt.data import Capture
from splatopt.data.image_store import shrunk_size
from splatopt.scene.photometric import Images, PhotometricObjective
from splatopt.train.levels import factor_at, parse_levels
from splatopt.train.process_context import ProcessContext


@runtime_checkable
class Follower(Protocol):
    """Whatever keeps something from step to step that hangs on the size of photographs."""

    def follow_level(self, ratio: float) -> None:
        """Go on with photographs of ``ratio`` times as many pixels a side."""


class CoarseToFine:
    """Has an objective see the photographs of the level at hand; of none, it leaves all as it is."""

    def __init__(self, levels: str, objective: PhotometricObjective, capture: Capture, context: ProcessContext) -> None:
        """Begin at full size.

        Args:
            levels: As :func:`parse_levels` reads them.
            objective: Whose photographs and cameras change; poses that were refined stay.
            capture: Gives both at full size.
            context: Shrinks the photographs, and fetches them ahead.
        """
        self._levels = parse_levels(levels)
        self._objective, self._cameras, self._context = objective, capture.cameras, context
        self._factor = 1
        self._begun = False

    def begin(self, scored: Sequence[int], views: Sequence[int]) -> None:
        """Go to the first level, and begin to fetch whole photographs to be scored, and ``views`` of that level."""
        self.before_step(0)
        self._context.expect_first(scored, views)

    def replan(self, levels: str) -> None:
        """Go on by other levels; the one at hand ends with the next step where they say so."""
        self._levels = parse_levels(levels)

    def before_step(self, step: int, *followers: Follower | None) -> None:
        """Change the level where the next step begins another one.

        A run that begins or goes on is first brought to the level of the step before, which is that of all that its
        checkpoint holds.

        Args:
            step: Steps done.
            followers: What is told of a change, once the objective has the new photographs.
        """
        if not self._levels and self._factor == 1:
            return
        if not self._begun:
            self._begun = True
            self._enter(factor_at(self._levels, max(0, step - 1)))
        before, now = self._factor, factor_at(self._levels, step)
        if now == before:
            return
        self._enter(now)
        for follower in followers:
            if follower is not None:
                follower.follow_level(before / now)

    @contextmanager
    def full_size(self) -> Iterator[None]:
        """See the photographs at full size for a while."""
        factor = self._factor
        if factor == 1:
            yield
            return
        kept = self._objective.images
        self._show(1, self._context.images)
        try:
            yield
        finally:
            self._show(factor, kept)

    def _enter(self, factor: int) -> None:
        if factor != self._factor:
            self._show(factor, self._context.shrunk_images(factor))
            self._factor = factor

    def _show(self, factor: int, images: Images) -> None:
        pairs = zip(self._cameras, self._objective.cameras, strict=True)
        cameras = [replace(full, world_to_camera=now.world_to_camera) for full, now in pairs]
        shrunk = [one.resized(*shrunk_size(one.width, one.height, factor)) for one in cameras]
        self._objective.show(shrunk if factor > 1 else cameras, images)
