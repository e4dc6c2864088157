"""What an optimizer remembers, declared once: saving, loading and row edits follow from the declaration.

An optimizer declares each part of its state where it is made::

    self.momentum = self.remember(PerParameter("momentum", objective.parameters, degree=1))

and uses it as the tensors that it holds. A part knows under which names it is saved, which saved tensors it goes on
from, and what an edit of the scene's rows makes of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.scene_edit import SceneEdit

Tensors = Mapping[str, Tensor]
NumberType = TypeVar("NumberType", int, float)


@dataclass(frozen=True)
class OptimizerState:
    """Everything an optimizer must keep to go on bit-exactly.

    Attributes:
        tensors: Named tensors, written to safetensors.
        scalars: Named numbers, written to JSON; floats keep every bit there.
    """

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float | int]


class StatePart(ABC):
    """One part of the state of an optimizer or a density strategy."""

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by the names that they are saved under; they may be views."""
        return {}

    def scalars(self) -> dict[str, float | int]:
        """Return its numbers by the names that they are saved under."""
        return {}

    @abstractmethod
    def load(self, state: OptimizerState) -> None:
        """Go on from copies of what was saved; raises InputError where it does not fit."""

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:  # noqa: B027 - many keep nothing by row
        """Follow an edit of the rows.

        Args:
            edit: The edit.
            parameters: The parameters, edited already.
        """

    def follow_level(self, ratio: float) -> None:  # noqa: B027 - what is a mean over pixels stays as it is
        """Go on with images of ``ratio`` times as many pixels a side.

        Loss and residuals are means over pixels, so that gradients and JᵀJ of what a pixel resolves keep their size.
        """


StatePartType = TypeVar("StatePartType", bound=StatePart)


class Stateful:
    """What has a state that is declared part by part with :meth:`remember`: optimizers and density strategies."""

    def __init__(self) -> None:
        """Begin without any part."""
        self._state_parts: list[StatePart] = []

    def remember(self, part: StatePartType) -> StatePartType:
        """Declare a part of the state, and return it: it is saved, loaded and follows row edits from now on."""
        self._state_parts.append(part)
        return part

    def state(self) -> OptimizerState:
        """Return all that was declared with :meth:`remember`; tensors may be views: whoever keeps them clones them."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, float | int] = {}
        for part in self._state_parts:
            tensors |= part.tensors()
            scalars |= part.scalars()
        return OptimizerState(tensors, scalars)

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit."""
        for part in self._state_parts:
            part.load(state)

    def follow_level(self, ratio: float) -> None:
        """Go on with images of ``ratio`` times as many pixels a side, see :meth:`StatePart.follow_level`."""
        for part in self._state_parts:
            part.follow_level(ratio)


class PerParameter(StatePart):
    """A tensor for each parameter, in its shape, saved as ``name.parameter``; zero at first and in fresh rows."""

    def __init__(
        self, name: str, parameters: Tensors, *, degree: int, resettable: bool = True, only: Sequence[str] | None = None
    ) -> None:
        """Begin with zeros.

        Args:
            name: What it is called in a saved state.
            parameters: The objective's.
            degree: Of which degree in the gradient it is, see :class:`~splatopt.core.scene_edit.SceneEdit`: 1 for a
                mean of gradients, 2 for a mean of their squares or a curvature, 4 for a mean of squared curvatures.
            resettable: Whether the reset of one parameter clears it.
            only: The parameters that have it; all when None.
        """
        self.name, self.degree, self.resettable = name, degree, resettable
        names = parameters if only is None else only
        self.values = {key: torch.zeros_like(parameters[key]) for key in names}

    def __getitem__(self, parameter: str) -> Tensor:
        """The tensor of one parameter."""
        return self.values[parameter]

    def tensors(self) -> dict[str, Tensor]:
        """Return each under ``name.parameter``."""
        return {f"{self.name}.{key}": value for key, value in self.values.items()}

    def load(self, state: OptimizerState) -> None:
        """Go on from copies; raises InputError where one is missing, or of another shape or type."""
        self.values.update(load_like(self.values, state.tensors, self.name))

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Gather, with zeros where fresh or reset, times the edit's factors to the power of the degree."""
        for key, value in self.values.items():
            self.values[key] = edit.parameter_state(key, value, self.degree, self.resettable)


class PerRow(StatePart):
    """A number, or a row of numbers, for each row of the scene; zero at first and in fresh rows."""

    def __init__(self, name: str, parameters: Tensors, *, width: int = 0, saved_as: str | None = None) -> None:
        """Begin with zeros, one for each row that all parameters share, or a single one where their rows differ.

        Args:
            name: What it is called in a saved state, as ``name.rows``.
            parameters: The objective's.
            width: Numbers per row, (N, width); 0 for a plain column (N,).
            saved_as: The whole name in a saved state, where it is another.
        """
        self.saved_as = saved_as or f"{name}.rows"
        rows = zero_per_row(parameters)
        self.values = rows.new_zeros(len(rows), width) if width else rows

    def tensors(self) -> dict[str, Tensor]:
        """Return it under its name."""
        return {self.saved_as: self.values}

    def load(self, state: OptimizerState) -> None:
        """Go on from a copy; raises InputError where it is missing, or of another shape or type."""
        self.values = load_one(self.values, state.tensors, self.saved_as)

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Gather, with zeros where fresh."""
        self.values = edit.gather_state(self.values)


class Measurements(PerRow):
    """How many measurements the running mean of each row's curvature is of.

    At images of another size all that was measured before counts as one measurement: a mean that is corrected by this
    number goes half way to the first one of the new size. The mean itself stays as it is, for J is of residuals that
    are means over pixels; what changes is by row, with what the coarser pixels hid of it.
    """

    def follow_level(self, ratio: float) -> None:
        """Count as one measurement at most."""
        self.values.clamp_(max=1)


class Number(StatePart, Generic[NumberType]):
    """One number, such as the steps that were done; it keeps the type that it begins with."""

    def __init__(self, name: str, begin: NumberType) -> None:
        """Begin with ``begin``, saved under ``name``."""
        self.name = name
        self.value: NumberType = begin

    def scalars(self) -> dict[str, float | int]:
        """Return it under its name."""
        return {self.name: self.value}

    def load(self, state: OptimizerState) -> None:
        """Go on from it; raises InputError where it is missing."""
        if self.name not in state.scalars:
            raise InputError(f"this is not a state of the run's optimizer: it holds no {self.name}; start a new run")
        self.value = type(self.value)(state.scalars[self.name])


def load_one(like: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Return a copy of the tensor ``name``, on the device of ``like``.

    Raises:
        InputError: It is missing, or of another shape or type than ``like``.
    """
    value = tensors.get(name)
    if value is None or value.shape != like.shape or value.dtype != like.dtype:
        came = "nothing" if value is None else f"{tuple(value.shape)} {value.dtype}"
        raise InputError(
            f"the saved state {name} must be {tuple(like.shape)} {like.dtype} to fit its parameter, got {came}; "
            "resume the run that wrote it, or start a new one"
        )
    return value.to(like.device, copy=True).contiguous()


def load_like(likes: Tensors, tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return copies of the tensors named ``prefix.<name>`` for each name in ``likes``, see :func:`load_one`."""
    return {name: load_one(like, tensors, f"{prefix}.{name}") for name, like in likes.items()}


def zero_per_row(parameters: Tensors) -> Tensor:
    """Return a zero for each row that all parameters share, or a single one where their rows differ."""
    first = next(iter(parameters.values()))
    counts = {value.shape[:1] for value in parameters.values()}
    return first.new_zeros(counts.pop() if len(counts) == 1 and first.dim() else 1)
