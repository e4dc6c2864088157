"""Objectives around another objective: what they do not change is the inner one's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from splatopt.core.objective import Objective, Oracle, Residuals, Tensors
from splatopt.core.scene_edit import SceneEdit


class WrappedObjective(Objective):
    """The objective ``inner``, asked in another way; subclasses say which."""

    def __init__(self, inner: Objective) -> None:
        """Wrap ``inner``."""
        self.inner = inner

    @property
    def parameters(self) -> Tensors:
        """The inner one's."""
        return self.inner.parameters

    @property
    def oracles(self) -> frozenset[Oracle]:
        """The inner one's."""
        return self.inner.oracles

    @property
    def length_scale(self) -> float:
        """The inner one's."""
        return self.inner.length_scale

    @property
    def backend(self) -> str:
        """The inner one's."""
        return self.inner.backend

    @property
    def block_names(self) -> tuple[str, ...]:
        """The inner one's."""
        return self.inner.block_names

    def held(self) -> AbstractContextManager[None]:
        """Promise the inner one."""
        return self.inner.held()

    def parts(self, batch: Any) -> Sequence[Any]:
        """Return the inner one's."""
        return self.inner.parts(batch)

    def views(self, batch: Any) -> Sequence[int]:
        """Return the inner one's."""
        return self.inner.views(batch)

    def split(self, batch: Any, count: int) -> Sequence[Any]:
        """Return the inner one's."""
        return self.inner.split(batch, count)

    def empty_residuals(self, batch: Any) -> Residuals:
        """Return the inner one's."""
        return self.inner.empty_residuals(batch)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Edit the inner one."""
        self.inner.edit_rows(edit)

    def require(self, needed: frozenset[Oracle], who: str) -> None:
        """Refuse in the inner one's words."""
        self.inner.require(needed, who)


def scaled(tensors: Tensors, factor: float) -> dict[str, torch.Tensor]:
    """Return ``factor`` · ``tensors``, in their own memory where it is contiguous."""
    return {name: part.contiguous().mul_(factor) for name, part in tensors.items()}


def zeros_like(parameters: Tensors) -> dict[str, torch.Tensor]:
    """Return zeros in the parameters' shapes."""
    return {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in parameters.items()}
