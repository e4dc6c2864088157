"""What a training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from splatopt.core.checks import InputError
from splatopt.core.optimizer import find_optimizer, option_prefix
from splatopt.data import CaptureOptions
from splatopt.runs.config import RunConfig
from splatopt.runs.folder import RunFolder
from splatopt.runs.resuming import check_options
from splatopt.runs.saved_options import saved_options
from splatopt.runs.unread import check_read, options_to_json
from splatopt.train.choices import check_end, left_open
from splatopt.train.chosen_loss import USUAL_LOSS, saved_loss_options
from splatopt.train.density_options import AUTO, NO_DENSITY, DensityOptions, saved_density_options
from splatopt.train.options import (
    USUAL_OPTIMIZER,
    DataOptions,
    ProcessOptions,
    SavingOptions,
    SceneOptions,
    ScheduleOptions,
    ScoringOptions,
)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train a Gaussian scene from a capture: posed photographs, and points to start from."""

    subject: ClassVar[str] = "capture"

    data: DataOptions
    scene: SceneOptions = field(default_factory=SceneOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    density: DensityOptions = field(default_factory=DensityOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)
    processes: ProcessOptions = field(default_factory=ProcessOptions)

    def resolved(self, name: str, background: tuple[float, float, float]) -> TrainConfig:
        """Return the configuration with everything spelt out that was left to be chosen.

        Args:
            name: The capture's name, for the folder.
            background: The capture's own, where none was given.
        """
        chosen = self.changed(**left_open(self.schedule, self.scene, self.density))
        schedule, out = chosen.schedule, chosen.saving.out
        given = schedule.options_by_name
        options = {name: given.get(name) or find_optimizer(name).options() for name in schedule.optimizers}
        return chosen.changed(
            steps=None if schedule.is_planned and schedule.stages is None else schedule.total_steps,
            optimizer_options=options[schedule.optimizer] if schedule.stages is None else options,
            background=background if self.scene.background is None else self.scene.background,
            max_side=CaptureOptions(downscale=self.data.downscale, max_side=self.data.max_side).longest_side,
            out=out if out is not None else Path("runs") / "-".join((name, *schedule.optimizers)).replace(":", "-"),
        )

    @classmethod
    def read(cls, folder: RunFolder) -> TrainConfig:
        """Return what the run in ``folder`` was told; one that names no longest side, as of older versions, has none.

        Raises:
            InputError: There is no run of this kind here.
        """
        found = super().read(folder)
        return found.changed(max_side=0) if found.data.max_side is None else found

    def check_known(self, where: str) -> None:
        """Raise InputError where an optimizer, loss or strategy of a run read in ``where`` is not known here."""
        apart = (self.scene.loss_options, self.density.density_options)
        check_read([*self.schedule.options_by_name.values(), *apart], where)

    def _options_to_json(self) -> dict[str, object]:
        schedule, loss, strategy = self.schedule, self.scene.loss_options, self.density.density_options
        by_name = {name: options_to_json(given) for name, given in schedule.options_by_name.items()}
        options = by_name if schedule.stages is not None else next(iter(by_name.values()), None)
        return {
            "optimizer_options": None if schedule.optimizer_options is None else options,
            "loss_options": None if loss is None else options_to_json(loss),
            "density_options": None if strategy is None else options_to_json(strategy),
        }

    @classmethod
    def _options_from_json(
        cls, values: Mapping[str, object], settings: Mapping[str, Any], where: str
    ) -> dict[str, object]:
        loss, strategy = settings.get("loss", USUAL_LOSS), settings.get("density", NO_DENSITY)
        # What files of older versions do not name was the plain run's.
        optimizer = settings.get("optimizer", AUTO if settings.get("stages") is not None else USUAL_OPTIMIZER)
        found: dict[str, object] = {
            "density": strategy,
            "optimizer": optimizer,
            "loss_options": saved_loss_options(loss, values.get("loss_options"), where),
            "density_options": saved_density_options(strategy, values.get("density_options"), where),
        }
        if (saved := values.get("optimizer_options")) is not None:
            staged = settings.get("stages") is not None
            found["optimizer_options"] = saved_options(saved, str(optimizer), staged, where)
        return found

    def _resumed(self, saved: TrainConfig, chosen: dict[str, object]) -> TrainConfig:
        if self.schedule.stages is not None:
            chosen |= {"steps": self.schedule.steps, "optimizer": self.schedule.optimizer}
        check_end(self.schedule, saved.schedule)
        kept_loss, kept_density = saved.scene.loss_options, saved.density.density_options
        for name, given, kept in (
            (saved.scene.loss, self.scene.loss_options, kept_loss),
            (saved.density.density, self.density.density_options, kept_density),
        ):
            if given is not None and type(given) is type(kept):
                check_options(saved.saving.out, name, given, kept)
        resumed = self.changed(**chosen, optimizer_options=None, loss_options=kept_loss, density_options=kept_density)
        options = self._options_resuming(saved, resumed.schedule.optimizers)
        staged = resumed.schedule.stages is not None
        return resumed.changed(optimizer_options=options if staged else options[resumed.schedule.optimizer])

    def _options_resuming(self, saved: TrainConfig, optimizers: tuple[str, ...]) -> dict[str, Any]:
        """Return the options to resume ``saved`` with: its own, and for stages that are new those that were given."""
        given, kept, run = self.schedule.options_by_name, saved.schedule.options_by_name, saved.saving.out
        for name, options in given.items():
            check_options(run, option_prefix(name), options, kept.get(name, options))
            if name not in optimizers and options != type(options)():
                raise InputError(f"options of {name!r} are given, and the run in {run} does not use it")
        return {name: kept.get(name, given.get(name)) or find_optimizer(name).options() for name in optimizers}
