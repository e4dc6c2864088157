"""What users of ``torch.optim`` do out of habit, and what an optimizer makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from splatopt.core.checks import InputError


class RefusesGradScaler:
    """Mixed in beside ``torch.optim.Optimizer``: gradients must not come scaled.

    ``GradScaler`` tells an optimizer that can handle scaled gradients what it has found in them, and leaves the rest to
    it; that is the way to notice it.
    """

    _step_supports_amp_scaling: ClassVar[bool] = True

    def refuse_scaler(self) -> None:
        """Raise InputError where a ``GradScaler`` calls the step."""
        if getattr(self, "found_inf", None) is not None:
            raise InputError(
                f"{type(self).__name__} does not work with GradScaler: curvature is not scaled as gradients are; train "
                "in float32, or with autocast in bfloat16, which needs no scaler"
            )


class _KeepsGraph(TorchFunctionMode):
    """Has ``loss.backward()`` keep its graph, for a second derivative, and notes that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:
            self.called = True
            if len(args) < 3:  # else the caller says by place what becomes of the graph
                kwargs["retain_graph"] = True
        return func(*args, **kwargs)


class Closure:
    """A closure that returns the loss with its graph, and may have called ``loss.backward()`` on it.

    Attributes:
        calls_backward: Whether it did when it ran last.
    """

    def __init__(self) -> None:
        """Begin without knowing."""
        self.calls_backward: bool | None = None

    def run(
        self, closure: Callable[[], Tensor] | None, who: str, params: Sequence[Tensor], *, keeps_graph: bool
    ) -> Tensor:
        """Return the loss with its graph.

        Args:
            closure: Returns it.
            who: The optimizer, for messages.
            params: Whose gradients tell whether a closure that used to call ``backward`` still does.
            keeps_graph: Whether the graph is needed once more.

        Raises:
            InputError: There is no closure, or it returns no tensor.
        """
        if closure is None:
            raise InputError(
                f"{who} differentiates the loss twice, and .grad does not tell enough: call step(closure), where "
                "closure() returns the loss with its graph"
            )
        with torch.enable_grad():
            # Looking at every call takes time, so it is done while it is not known, and where it is needed.
            if self.calls_backward is None or (self.calls_backward and keeps_graph):
                with _KeepsGraph() as mode:
                    loss = closure()
                self.calls_backward = mode.called
            elif self.calls_backward:
                before = [_write_of(param.grad) for param in params]
                loss = closure()
                pairs = zip(params, before, strict=True)
                if params and not any(_is_written(param.grad, *old) for param, old in pairs):
                    # It calls backward no more, or these had no part in the loss: the next call tells.
                    self.calls_backward = None
            else:
                loss = closure()
        if not isinstance(loss, Tensor):
            raise InputError(f"the closure of {who} must return the loss as a tensor, got a {type(loss).__name__}")
        return loss


def _write_of(gradient: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a gradient and how often it was written."""
    return gradient, 0 if gradient is None else gradient._version


def _is_written(gradient: Tensor | None, before: Tensor | None, version: int) -> bool:
    """Whether there is a gradient that is another tensor than before, or was written since."""
    return gradient is not None and (gradient is not before or gradient._version != version)
