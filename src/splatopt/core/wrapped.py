"""Objectives around another objective: they answer every question that it answers, or are not made.

What may be asked is declared once, in :data:`splatopt.core.objective.QUESTIONS`. A wrapper has one method,
:meth:`WrappedObjective.answer`, that all questions about a batch go through; what depends on no batch's parts is the
inner objective's. So no wrapper can fall back to a default of :class:`~splatopt.core.objective.Objective`.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch

from splatopt.core.objective import QUESTIONS, Batch, Combine, Evaluation, Objective, Oracle, Tensors


class WrappedObjective(Objective):
    """The objective ``inner``, asked in another way; subclasses say which.

    A subclass defines :meth:`answer`, and may define any question's own method where that is not enough.
    """

    def __init_subclass__(cls) -> None:
        """Refuse every wrapper while ``Objective`` has a public name of which no row says how it is passed on."""
        super().__init_subclass__()
        if names := undeclared():
            raise TypeError(
                f"QUESTIONS has no row for Objective's {', '.join(names)}, so {cls.__name__} cannot pass it on; "
                "add one that says how answers are combined"
            )

    def __init__(self, inner: Objective) -> None:
        """Wrap ``inner``.

        Raises:
            TypeError: It has a question that cannot be passed on; names it and what to do.
        """
        self.inner = inner
        self.questions = inner.questions
        kind = type(innermost(inner))
        for name in QUESTIONS:
            self._check_declared(kind, name)
        for name in self.questions.keys() - QUESTIONS.keys():
            method = getattr(kind, name, None)
            if not callable(method):
                raise TypeError(
                    f"{kind.__name__} declares the question {name!r}, which {type(self).__name__} can pass on to a "
                    "method of that name alone"
                )
            if not hasattr(type(self), name):
                asked = _passed_on(name, method, self.questions[name].combine)
                setattr(self, name, functools.partial(asked, self))

    def _check_declared(self, kind: type[Objective], name: str) -> None:
        if self.questions.get(name) != QUESTIONS[name]:
            raise TypeError(f"{kind.__name__}.questions lacks or changes {name}; only add to Objective.questions")
        if QUESTIONS[name].composed and getattr(kind, name) is not getattr(Objective, name):
            raise TypeError(
                f"{kind.__name__} overrides {name}, which {type(self).__name__} composes of other questions; override "
                "those that it asks"
            )

    @abstractmethod
    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return the answer to one question about a batch.

        Args:
            name: The question, a method of ``inner`` and a row of ``questions``.
            batch: What it is about.
            arguments: What it takes besides, in the method's order.
        """

    def compose(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return what the innermost objective's method composes of further answers, here of this wrapper's."""
        method: Callable[..., object] = getattr(type(innermost(self)), name)
        return method(self, batch, *arguments)

    # ------------------------------------------------------------------ what type checkers must see; all else follows

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

    def gradient(self, batch: Batch) -> Evaluation:
        """Return :meth:`answer`'s."""
        found = self.answer("gradient", batch)
        assert isinstance(found, Evaluation)
        return found


def innermost(objective: Objective) -> Objective:
    """Return the objective that is around no other."""
    while isinstance(objective, WrappedObjective):
        objective = objective.inner
    return objective


def undeclared() -> list[str]:
    """Return the public names of ``Objective`` that have no row in ``QUESTIONS``."""
    names = (name for name in vars(Objective) if not name.startswith("_"))
    return sorted(name for name in names if name != "questions" and name not in QUESTIONS)


def _passed_on(
    name: str, method: Callable[..., object], combine: Combine | Mapping[str, Combine]
) -> Callable[..., object]:
    """Return the wrappers' method for one question: the inner one's own answer, or what ``answer`` makes of it.

    Raises:
        TypeError: It has arguments that have no place in order, which :meth:`WrappedObjective.answer` would lose.
    """
    signature = inspect.signature(method)
    if any(one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD) for one in signature.parameters.values()):
        raise TypeError(
            f"the question {name!r} takes arguments by name alone; wrappers pass on what has a place in order"
        )

    @functools.wraps(method, updated=())  # without its mark of being abstract
    def asked(self: WrappedObjective, *arguments: object, **named: object) -> object:
        if combine is Combine.SAME:
            return getattr(self.inner, name)(*arguments, **named)
        if named:
            bound = signature.bind(self, *arguments, **named)
            bound.apply_defaults()
            arguments = bound.args[1:]
        return self.answer(name, *arguments)

    return asked


def _pass_on_all() -> None:
    """Give the wrappers every question of ``Objective`` that they have not by now."""
    for name, row in QUESTIONS.items():
        if name in vars(WrappedObjective):
            continue
        found = getattr(Objective, name)
        if isinstance(found, property):
            setattr(WrappedObjective, name, property(functools.partial(_inner_value, name), doc=found.__doc__))
        else:
            setattr(WrappedObjective, name, _passed_on(name, found, row.combine))


def _inner_value(name: str, wrapper: WrappedObjective) -> object:
    return getattr(wrapper.inner, name)


def scaled(tensors: Tensors, factor: float) -> dict[str, torch.Tensor]:
    """Return ``factor`` · ``tensors``, in their own memory where it is contiguous."""
    return {name: part.contiguous().mul_(factor) for name, part in tensors.items()}


def zeros_like(parameters: Tensors) -> dict[str, torch.Tensor]:
    """Return zeros in the parameters' shapes."""
    return {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in parameters.items()}


_pass_on_all()
