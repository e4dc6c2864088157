"""``zoo:WRAPPER+NAME``: wrappers of the pytorch-optimizer package around any of its optimizers.

A wrapper keeps a state of its own beside that of the optimizer in it. :class:`Nested` shows both as one, in the form
of ``torch.optim``, so that saving, resuming and row edits know no difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from splatopt.optim.bridge import Feed
from splatopt.optim.types import Group

WRAPPERS = {
    "lookahead": ("Lookahead", "slow weights follow every k-th step by a share (Zhang et al. 2019)"),
    "orthograd": ("OrthoGrad", "the part of the gradient along the parameters is left out (Prieto et al. 2025)"),
    "schedulefree": ("ScheduleFreeWrapper", "an average in place of a schedule (Defazio et al. 2024)"),
    "sam": ("SAM", "the gradient is taken a step uphill (Foret et al. 2021)"),
    "looksam": ("LookSAM", "SAM whose second gradient is taken every k-th step (Liu et al. 2022)"),
    "friendlysam": ("FriendlySAM", "SAM along the batch's own part of the gradient (Li et al. 2024)"),
}
"""What may stand before a plus: the package's class, and what it does."""

REFUSED_WRAPPERS = {
    "bsam": "it wants the number of data, and closures of its own kind",
    "gsam": "it wants a whole model and takes over its backward pass",
    "wsam": "it wants a whole model",
    "trac": "part of its state lies where no checkpoint reaches it, so a run could not be resumed",
    "pcgrad": "it wants several losses a step",
}
"""What of the package's wrappers is not handed out, and why."""

_UPHILL = ("sam", "looksam", "friendlysam")
_PREFIX = "wrapper."


def feed_of(wrapper: str) -> Feed:
    """Return how an optimizer in ``wrapper`` is told of gradients."""
    return Feed.GRADIENTS_AND_CLOSURE if wrapper in _UPHILL else Feed.GRADIENTS


def wrapped_factory(
    package: Any, wrapper: str, base: Callable[..., torch.optim.Optimizer], base_settings: list[str]
) -> tuple[Callable[..., Any], list[str]]:
    """Return what makes a wrapped optimizer from groups and keywords, and the keywords that it knows.

    A keyword that the wrapper knows is the wrapper's; all others are the optimizer's in it.

    Args:
        package: ``pytorch_optimizer``.
        wrapper: One of ``WRAPPERS``.
        base: Makes the optimizer in it from groups and keywords.
        base_settings: The keywords that it knows.
    """
    kind = getattr(package, WRAPPERS[wrapper][0])
    apart = ("self", "params", "optimizer", "base_optimizer", "kwargs")
    own = [name for name in inspect.signature(kind).parameters if name not in apart]

    def make(groups: list[Group], **keywords: Any) -> Any:
        mine = {name: value for name, value in keywords.items() if name in own}
        rest = {name: value for name, value in keywords.items() if name not in own}
        if wrapper not in _UPHILL:
            inner = base(groups, **rest)
            outer = kind(inner, **mine)
        else:
            outer = kind(groups, base, **mine, **rest)
            inner = outer.base_optimizer
        return outer if outer.state is inner.state else Nested(outer, inner)

    return make, [*own, *base_settings]


class Nested(torch.optim.Optimizer):
    """A wrapper and the optimizer in it, seen as one ``torch.optim`` optimizer.

    What the wrapper keeps of a parameter lies beside what the optimizer keeps, under ``wrapper.``.
    """

    def __init__(self, outer: Any, inner: torch.optim.Optimizer) -> None:
        """Show ``outer``, which is around ``inner`` and has prepared its groups."""
        self.outer, self.inner = outer, inner
        self.state: Any = _States(outer, inner)
        if isinstance(getattr(outer, "train_mode", None), bool):
            self.train, self.eval = outer.train, outer.eval

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The groups of both."""
        return self.inner.param_groups

    def step(self, closure: Any = None) -> Any:
        """Take the wrapper's step."""
        return self.outer.step(closure) if closure is not None else self.outer.step()

    def state_dict(self) -> Group:
        """Return both states by the parameters' numbers."""
        saved = self.inner.state_dict()
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        states = {number: self.state[leaf] for number, leaf in enumerate(leaves) if leaf in self.state}
        return {"state": states, "param_groups": saved["param_groups"]}

    def load_state_dict(self, saved: Group) -> None:
        """Go on from what :meth:`state_dict` gave."""
        inner, outer = {}, {}
        for number, state in saved["state"].items():
            inner[number], outer[number] = _apart(state)
        self.inner.load_state_dict({"state": inner, "param_groups": saved["param_groups"]})
        if self.outer.param_groups is not self.inner.param_groups:
            self.outer.param_groups = self.inner.param_groups
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        for number, state in outer.items():
            self.outer.state[leaves[number]] = state


class _States(MutableMapping):
    """What is kept of each parameter by a wrapper and by the optimizer in it."""

    def __init__(self, outer: Any, inner: torch.optim.Optimizer) -> None:
        self._outer, self._inner = outer, inner

    def __getitem__(self, leaf: Tensor) -> Group:
        if leaf not in self:
            raise KeyError(leaf)
        own = self._outer.state.get(leaf, {})
        return {**self._inner.state.get(leaf, {}), **{f"{_PREFIX}{key}": value for key, value in own.items()}}

    def __setitem__(self, leaf: Tensor, state: Group) -> None:
        self._inner.state[leaf], self._outer.state[leaf] = _apart(state)

    def __delitem__(self, leaf: Tensor) -> None:
        self._inner.state.pop(leaf, None)
        self._outer.state.pop(leaf, None)

    def __contains__(self, leaf: object) -> bool:
        return leaf in self._inner.state or leaf in self._outer.state

    def __iter__(self) -> Iterator[Tensor]:
        return iter({**self._inner.state, **self._outer.state})

    def __len__(self) -> int:
        return len({**self._inner.state, **self._outer.state})


def _apart(state: Group) -> tuple[Group, Group]:
    """What of ``state`` is the optimizer's, and what the wrapper's."""
    outer = {key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)}
    return {key: value for key, value in state.items() if not key.startswith(_PREFIX)}, outer
