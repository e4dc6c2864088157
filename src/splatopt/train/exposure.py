"""Exposure in a run: when the photographs' colour maps are solved, and what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatopt.core.checkpoint import Checkpoint, damage_in
from splatopt.core.processes import Processes
from splatopt.data import Capture
from splatopt.scene.exposure import Exposure, ExposureMaps, identity_maps, view_system
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.checkpoint_content import EXPOSURE, maps_of

_COUNTS = "exposure"


def warn_of_see_through(exposure: Exposure, capture: Capture) -> list[str]:
    """Return a sentence where photographs are see-through, whose background a map changes like all else."""
    if exposure is Exposure.NONE or not any(one.shows_background for one in capture.images.sources):
        return []
    return [
        "photographs are see-through, and --exposure affine maps the background behind them like all else, which the "
        "scene's own does not follow: the scene has to draw the difference; give --mask ignore, or leave --exposure out"
    ]


class ExposureSolving:
    """Solves the maps of all training views now and then, always of all against the scene as it is.

    The first time is before the first step; the next when every view was seen once more on average, or half as often
    again as until then, whichever is later. Each time costs a render of every training view.
    """

    def __init__(
        self, exposure: Exposure, objective: PhotometricObjective, views: Sequence[int], processes: Processes
    ) -> None:
        """Let ``objective`` compare with photographs taken back.

        Args:
            exposure: What is solved; for NONE nothing is, and nothing done.
            objective: Of this process.
            views: Those that are trained on.
            processes: Those that share the run: each renders its share of the views, and all solve all maps.
        """
        self._objective, self._views, self._processes = objective, tuple(views), processes
        self._seen = self._next = 0
        if exposure is Exposure.AFFINE:
            objective.exposure = ExposureMaps(identity_maps(len(objective.cameras)))

    def before_step(self, count: int) -> None:
        """Solve the maps where it is time to.

        Args:
            count: Views that the step will render.
        """
        if self._seen >= self._next and self._objective.exposure is not None:
            self._solve(self._objective.exposure)
            self._next = self._seen + max(len(self._views), self._seen // 2)
        self._seen += count

    def _solve(self, exposure: ExposureMaps) -> None:
        objective = self._objective
        systems = torch.zeros(len(self._views), 4, 7, dtype=torch.float64)
        for at in range(self._processes.rank, len(self._views), self._processes.world_size):
            view = self._views[at]
            image = objective.renderer.render(objective.cloud, objective.cameras[view], objective.options).image
            weights, present = objective.weights_of(view), exposure.maps[view]
            systems[at] = view_system(image, objective.images[view], weights, present)
        self._processes.sum([systems])
        exposure.update(self._views, systems)

    def state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
        """Return what a checkpoint holds: the maps, and what is counted; nothing where none are solved."""
        if self._objective.exposure is None:
            return {}, {}
        counts = {"seen": self._seen, "next": self._next}
        return {f"{EXPOSURE}maps": self._objective.exposure.maps.clone()}, {_COUNTS: counts}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; raises DamagedCheckpointError where it holds no maps of this capture."""
        if self._objective.exposure is None:
            return
        maps, views = maps_of(checkpoint), len(self._objective.cameras)
        with damage_in(checkpoint.where):
            exposure = ExposureMaps(identity_maps(0) if maps is None else maps)
            exposure.check_count(views, checkpoint.where)
        with damage_in(checkpoint.fields.where):
            counts = checkpoint.fields.object(_COUNTS)
            self._seen, self._next = counts.count("seen"), counts.count("next")
        self._objective.exposure = exposure
