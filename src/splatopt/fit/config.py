"""What a fit of a neural field is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from splatopt.core.checks import InputError
from splatopt.core.optimizer import option_prefix
from splatopt.fit.options import (
    AUTO,
    DataOptions,
    NetworkOptions,
    ProcessOptions,
    ScheduleOptions,
    ScoringOptions,
    TaskKind,
    guess_task,
)
from splatopt.optim.field_optimizers import (
    FIELD_OPTIMIZERS,
    EsgdOptions,
    field_options,
    find_field_optimizer,
    with_rate_of,
)
from splatopt.runs.config import RunConfig, SavingOptions
from splatopt.runs.resuming import check_options
from splatopt.runs.unread import UnreadOptions, check_read, options_to_json, read_options


@dataclass(frozen=True)
class TaskDefaults:
    """What is taken where nothing was given.

    Attributes:
        epochs: Passes over all examples.
        batch: Examples a step.
        sigma: Width of the Gaussian activation.
    """

    epochs: int
    batch: int
    sigma: float


_SMOOTH, _SMOOTH_OF_MESHES = ("gaussian", "sine", "wavelet", "sinc"), ("gaussian", "sine")
"""Fields that ESGD fits better than Adam, of images and of meshes: docs/results/fields.md. Of radiance fields gaussian
alone was measured, and is taken as images are."""

_SINE_IMAGE_RATE = 0.05
"""Of ESGD; at the published 0.15 a sine field of an image swings: docs/results/fields.md."""


def suited_optimizer(field: str, task: TaskKind) -> tuple[str, Any]:
    """Return the optimizer that suits a field best, and its options where these are not its usual ones, else None.

    Args:
        field: Name of the field.
        task: What it is fitted to.
    """
    smooth = _SMOOTH_OF_MESHES if task is TaskKind.OCCUPANCY else _SMOOTH
    if field not in smooth:
        return "adam", None
    swings = (field, task) == ("sine", TaskKind.IMAGE)
    return "esgd", EsgdOptions(rate=_SINE_IMAGE_RATE) if swings else None


TASK_DEFAULTS = {
    TaskKind.IMAGE: TaskDefaults(epochs=200, batch=512, sigma=0.05),
    TaskKind.OCCUPANCY: TaskDefaults(epochs=200, batch=50_000, sigma=0.09),
    TaskKind.NERF: TaskDefaults(epochs=1, batch=512, sigma=0.1),
}
"""Batches, σ of images and occupancy as Chng et al. 2025; σ of NeRF as GARF (Chng et al. 2022)."""


@dataclass(frozen=True)
class FitConfig(RunConfig):
    """Fit a neural field to an image, to the inside of a mesh, or to a capture (NeRF)."""

    subject: ClassVar[str] = "target"

    data: DataOptions
    network: NetworkOptions = field(default_factory=NetworkOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)
    processes: ProcessOptions = field(default_factory=ProcessOptions)

    def __post_init__(self) -> None:
        """Refuse options of another optimizer."""
        if self.schedule.optimizer != AUTO:
            self._optimizer_options()

    @property
    def kind(self) -> TaskKind:
        """What the field is fitted to, by what the target is where that was left open."""
        return self.data.task if self.data.task is not TaskKind.AUTO else guess_task(Path(self.data.target))

    def with_optimizer(self) -> FitConfig:
        """Return the configuration with the field's own optimizer, where it was left open."""
        if self.schedule.optimizer != AUTO:
            return self
        name, options = suited_optimizer(self.network.field, self.kind)
        given = self.schedule.optimizer_options
        if options is not None:
            given = with_rate_of(given, options)
        return self.changed(optimizer=name, optimizer_options=given)

    def _optimizer_options(self) -> Any:
        """The optimizer's options with all that suits the field, where they are known."""
        if isinstance(self.schedule.optimizer_options, UnreadOptions):
            return self.schedule.optimizer_options
        return field_options(self.schedule.optimizer, self.network.field, self.schedule.optimizer_options)

    def resolved(self) -> FitConfig:
        """Return the configuration with everything spelt out that was left to be chosen, sizes of batches aside."""
        if self.schedule.optimizer == AUTO:
            return self.with_optimizer().resolved()
        schedule, network, target, kind = self.schedule, self.network, Path(self.data.target), self.kind
        defaults = TASK_DEFAULTS[kind]
        name = f"{target.resolve().stem}-{network.field}-{schedule.optimizer.replace(':', '-')}"
        has_end = schedule.epochs is not None or schedule.steps is not None
        return self.changed(
            task=kind,
            optimizer_options=self._optimizer_options(),
            epochs=schedule.epochs if has_end else defaults.epochs,
            sigma=defaults.sigma if network.field == "gaussian" and network.sigma is None else network.sigma,
            out=self.saving.out if self.saving.out is not None else Path("runs") / name,
        )

    def check_known(self, where: str) -> None:
        """Raise InputError where the optimizer of a run that was read in ``where`` is not known here."""
        check_read([self.schedule.optimizer_options], where)

    def _options_to_json(self) -> dict[str, object]:
        options = self.schedule.optimizer_options
        return {"optimizer_options": None if options is None else options_to_json(options)}

    @classmethod
    def _options_from_json(
        cls, values: Mapping[str, object], settings: Mapping[str, Any], where: str
    ) -> dict[str, object]:
        if (saved := values.get("optimizer_options")) is None:
            return {}
        optimizer = settings.get("optimizer", "adam")  # of versions that did not write it
        place = f"{where}: optimizer_options"
        return {"optimizer_options": read_options(saved, lambda: find_field_optimizer(optimizer).entry.options, place)}

    def _resumed(self, saved: FitConfig, chosen: dict[str, object]) -> FitConfig:
        given, kept, run = self.schedule.optimizer_options, saved.schedule.optimizer_options, saved.saving.out
        if given is not None and type(given) is type(kept):
            check_options(run, option_prefix(saved.schedule.optimizer), given, kept)
        elif given is not None and given != type(given)():
            owners = (name for name, entry in FIELD_OPTIMIZERS.items() if entry.entry.options is type(given))
            name = next(owners, AUTO) if self.schedule.optimizer == AUTO else self.schedule.optimizer
            raise InputError(f"options of {name!r} are given, and the run in {run} does not use it")
        if self.schedule.epochs is not None and self.schedule.steps is None:
            chosen["steps"] = None
        return self.changed(**chosen, optimizer_options=kept)
