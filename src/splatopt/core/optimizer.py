"""The optimizer protocol and the registry of names.

An optimizer in one short file, which a test runs as it stands here::

    from dataclasses import dataclass

    from splatopt import Optimizer, Oracle, register

    @dataclass(frozen=True)
    class SignOptions:
        rate: float = 1e-3

    class Sign(Optimizer):
        needs = frozenset({Oracle.GRADIENT})

        def step(self, batch, progress):
            evaluation = self.objective.gradient(batch)
            for name, parameter in self.objective.parameters.items():
                parameter -= self.options.rate * evaluation.gradient[name].sign()
            return evaluation

    register("sign", Sign, SignOptions)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch

from splatopt.core.checks import InputError
from splatopt.core.objective import Batch, Evaluation, Objective, Oracle
from splatopt.core.plugins import Registry, calling_place
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import Stateful

Options = TypeVar("Options")
"""An optimizer's own frozen dataclass."""


@dataclass(frozen=True)
class Progress:
    """Where in a run a step stands.

    Attributes:
        step: Steps done before this one; the first is 0.
        horizon: Steps that the run is planned for; schedules end there.
        passed: Share of it that is done, of a run whose horizon was moved on the way, so that no schedule jumps; None
            for step / horizon.
    """

    step: int
    horizon: int
    passed: float | None = None

    @property
    def fraction(self) -> float:
        """Share of the horizon already done, within [0, 1]."""
        return min(1.0, self.step / max(1, self.horizon)) if self.passed is None else self.passed

    def fraction_after(self, steps: int) -> float:
        """Return the share that will be done after so many more steps; more than 1 past the horizon."""
        if self.passed is None:
            return (self.step + steps) / max(1, self.horizon)
        return self.passed + steps * (1 - self.passed) / max(1, self.horizon - self.step)


class Optimizer(Stateful, ABC, Generic[Options]):
    """A policy that asks an objective for derivatives and writes its parameters in place."""

    needs: ClassVar[frozenset[Oracle]]

    warnings: list[str]
    """Sentences about what happened in a step, for a person to read; whoever runs the optimizer takes them out."""

    threads: int = 0
    """Threads that native passes may take, 0 for one per processor; set by whoever runs the optimizer."""

    instructions: str = "auto"
    """Instruction set of native passes, auto for the fastest; set by whoever runs the optimizer."""

    def __init__(self, objective: Objective, options: Options, generator: torch.Generator | None = None) -> None:
        """Check the oracles and keep what every optimizer keeps.

        All state is made here, declared with :meth:`remember`, and nothing is drawn from the generator: a resumed run
        makes its optimizer anew, and draws what the uninterrupted one would have drawn next.

        Args:
            objective: What is minimised.
            options: The optimizer's own frozen dataclass.
            generator: The run's source of randomness, handed down; None for those that draw nothing.

        Raises:
            MissingOracleError: The objective lacks an oracle of ``needs``.
        """
        super().__init__()
        objective.require(self.needs, type(self).__name__)
        self.objective = objective
        self.options = options
        self.generator = generator
        self.warnings: list[str] = []

    @property
    def batch_size(self) -> int | None:
        """How many parts (views) a step wants in its batch; None for as many as the run is told, 0 for all."""
        return None

    def check_batch(self, batch: Batch) -> None:
        """Raise InputError for a batch that no step can take; asked before a run begins, of all parts."""

    def state_bytes(self) -> int:
        """Return the bytes of the tensors that :meth:`state` gives; of those that others wrote, after a step alone."""
        return sum(value.numel() * value.element_size() for value in self.state().tensors.values())

    def memory_needed(self, batch: Batch) -> int:
        """Return the bytes that a step on ``batch`` takes for a while; 0 where a copy or two of the parameters do."""
        return 0

    def position_rate(self, progress: Progress) -> float | None:
        """Return the learning rate of Gaussians' centres in the step at ``progress``, world units; None for none."""
        return None

    def at_last_iterate(self) -> AbstractContextManager[None]:
        """Have the point that the next step goes from in the objective's parameters, where an average is there."""
        return nullcontext()

    @abstractmethod
    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Take one step on ``batch`` and return the evaluation at the point it started from."""

    def edit_rows(self, edit: SceneEdit) -> None:
        """Follow an edit of the parameters' rows, which have been edited already."""
        parameters = self.objective.parameters
        if unknown := sorted({*edit.values, *edit.resets, *edit.factors} - set(parameters)):
            raise ValueError(f"an edit is of {', '.join(unknown)}, and the parameters are {', '.join(parameters)}")
        for part in self._state_parts:
            part.edit_rows(edit, parameters)


@dataclass(frozen=True)
class Entry:
    """One registered optimizer: its class, its options' dataclass and one line of help."""

    optimizer: type[Optimizer]
    options: type
    help: str


OPTIMIZERS: Registry[Entry] = Registry("optimizer", "splatopt.optimizers")
"""All optimizers of scenes; those that others registered are optimizers of fields as well."""

_FAMILIES: dict[str, Callable[[str], Entry]] = {}


def register(name: str, optimizer: type[Optimizer], options: type, help: str = "") -> None:
    """Make ``optimizer`` known under ``name`` to the command line, suites and tests.

    Args:
        name: The word for it; its options follow under it, as in ``--lion.rate``.
        optimizer: The class.
        options: The dataclass of its options, each with a default.
        help: A line for ``splatopt train --help``.

    Raises:
        InputError: The name is taken; says where. Or the options are no dataclass that can be made without arguments.
    """
    place = calling_place()
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise InputError(f"the optimizer {name!r} in {place} must be a class that derives from Optimizer")
    if lacks := sorted(getattr(optimizer, "__abstractmethods__", ())):
        raise InputError(f"the optimizer {name!r} in {place} lacks {' and '.join(lacks)}()")
    if not hasattr(optimizer, "needs"):
        raise InputError(f"the optimizer {name!r} in {place} must say what it `needs`: a frozenset of Oracle")
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise InputError(f"the options of the optimizer {name!r} in {place} must be a dataclass, got {options!r}")
    try:
        options()
    except Exception as error:
        raise InputError(
            f"the options of the optimizer {name!r} in {place} cannot be made without arguments ({error}); give every "
            "field a default"
        ) from error
    OPTIMIZERS.add(name, Entry(optimizer, options, help), place)


def register_family(prefix: str, find: Callable[[str], Entry]) -> None:
    """Make all optimizers named ``prefix:NAME`` known; ``find`` gets NAME and raises InputError where there is none."""
    if prefix in _FAMILIES:
        raise ValueError(f"a family of optimizers named {prefix!r} is registered already")
    _FAMILIES[prefix] = find


def option_prefix(name: str) -> str:
    """Return the word before the options of the optimizer ``name`` on the command line: its own, or its family's."""
    OPTIMIZERS.names()
    prefix = name.partition(":")[0]
    return prefix if prefix in _FAMILIES else name


def optimizer_names() -> tuple[str, ...]:
    """Names of all registered optimizers, sorted; those that installed packages offer, once they were asked for."""
    return tuple(sorted(OPTIMIZERS.names()))


def find_optimizer(name: str) -> Entry:
    """Return the entry of ``name``; raises InputError with the nearest names if there is none."""
    OPTIMIZERS.names()
    prefix, separator, member = name.partition(":")
    if separator and prefix in _FAMILIES:
        return _FAMILIES[prefix](member)
    return OPTIMIZERS.find(name)
