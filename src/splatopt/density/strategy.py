"""The protocol of density strategies and the registry of their names.

A strategy is asked after every step whether rows (Gaussians) are to be added, removed or changed, and answers with a
:class:`~splatopt.core.scene_edit.SceneEdit`. It knows statistics of the scene, and neither optimizer nor renderer.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch

from splatopt.core.checks import InputError
from splatopt.core.objective import Objective, Oracle, Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.plugins import Registry, calling_place
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import Stateful

Options = TypeVar("Options")
"""A strategy's own frozen dataclass."""


@dataclass(frozen=True)
class DensityLimits:
    """What a strategy keeps to.

    Attributes:
        max_gaussians: Rows at most; fewer once memory has run out.
        views: The views that are trained on, from which a strategy draws those that it looks at.
        background: Colour behind the scene, RGB in [0, 1].
    """

    max_gaussians: int
    views: Sequence[int]
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StepTaken:
    """The step after which a strategy is asked.

    Attributes:
        progress: Steps done, this one included, and the steps of the whole run, all stages counted.
        position_rate: The optimizer's learning rate of the centres in this step, world units; None where it has none.
        loss: The loss on the step's views where the step began, the strategy's penalty included; views differ, so
            single numbers are noisy.
    """

    progress: Progress
    position_rate: float | None
    loss: float


class DensityStrategy(Stateful, ABC, Generic[Options]):
    """Decides which rows there are.

    Attributes:
        gradient_statistics: Sums that whoever runs the strategy lets every gradient pass add to; made here where the
            strategy wants them, else None.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(
        self, objective: Objective, options: Options, limits: DensityLimits, generator: torch.Generator
    ) -> None:
        """Check the oracles and keep what every strategy keeps.

        All state is made here, declared with :meth:`remember`, and nothing is drawn from the generator.

        Args:
            objective: The scene's; parameters are a cloud's six tensors, and ``length_scale`` is 3DGS' extent.
            options: The strategy's own.
            limits: What it keeps to.
            generator: The run's source of randomness.

        Raises:
            MissingOracleError: The objective lacks an oracle of ``needs``.
        """
        super().__init__()
        objective.require(self.needs, type(self).__name__)
        self.objective = objective
        self.options = options
        self.limits = limits
        self.generator = generator
        self.gradient_statistics: GradientStatistics | None = None

    def observes(self, progress: Progress) -> bool:
        """Whether the gradient passes of the next step shall add to the statistics; they cost a few percent of it.

        Args:
            progress: Steps done before it, and the steps of the whole run.
        """
        return self.gradient_statistics is not None

    def penalty(self) -> tuple[float, Tensors] | None:
        """Return a penalty on the parameters and its gradient, added to the loss of every step; None for none."""
        return None

    def move(self, step: StepTaken) -> None:
        """Change values of parameters in place after a step, such as noise on the centres."""

    @abstractmethod
    def edit(self, step: StepTaken) -> SceneEdit | None:
        """Return what becomes of the rows after a step; None for nothing, which is most steps."""

    def edit_rows(self, edit: SceneEdit) -> None:
        """Follow an edit, its own or another's, once the parameters have been edited."""
        for part in self._state_parts:
            part.edit_rows(edit, self.objective.parameters)


@dataclass(frozen=True)
class DensityEntry:
    """One registered strategy: its class, its options' dataclass and one line of help."""

    strategy: type[DensityStrategy]
    options: type
    help: str


STRATEGIES: Registry[DensityEntry] = Registry("density strategy", "splatopt.density")


def register_density(name: str, strategy: type[DensityStrategy], options: type, help: str = "") -> None:
    """Make ``strategy`` known under ``name`` to the command line, suites and tests.

    Args:
        name: The word for it, as in ``--density NAME``; its options follow under it, as in ``--adc.until``.
        strategy: The class.
        options: The dataclass of its options, each with a default.
        help: A line for ``splatopt train --help``.

    Raises:
        InputError: The name is taken; says where. Or it is no strategy with options that can be made without arguments.
    """
    place = calling_place()
    where = f"the density strategy {name!r} in {place}"
    if not (isinstance(strategy, type) and issubclass(strategy, DensityStrategy)):
        raise InputError(f"{where} must be a class that derives from DensityStrategy")
    if lacks := sorted(getattr(strategy, "__abstractmethods__", ())):
        raise InputError(f"{where} lacks {' and '.join(lacks)}()")
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise InputError(f"{where} must have a dataclass of options, got {options!r}")
    try:
        options()
    except Exception as error:
        raise InputError(f"{where} has options that cannot be made without arguments ({error})") from error
    STRATEGIES.add(name, DensityEntry(strategy, options, help), place)


def find_density(name: str) -> DensityEntry:
    """Return the entry of ``name``; raises InputError with the nearest names if there is none."""
    return STRATEGIES.find(name)
