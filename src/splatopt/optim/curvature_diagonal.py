"""ESGD, ESGD-max and AdaHessian in its two readings, as ``torch.optim`` optimizers.

Each is a moving average of gradients divided by a diagonal of the Hessian that random probes keep up to date::

    optimizer = ESGD(field.parameters())
    loss = optimizer.step(lambda: ((field(x) - y) ** 2).mean())

The closure returns the loss with its graph. It need not call ``backward``: what is differentiated, and how often, is
the optimizer's business. One that does, as closures of ``torch.optim`` do, leaves in ``.grad`` what the step takes for
the gradient, so that it may be clipped there; where probes are due the loss is differentiated again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from splatopt.core.checks import check_fraction, check_positive
from splatopt.curvature.estimators import rademacher
from splatopt.optim.habits import Closure, RefusesGradScaler
from splatopt.optim.preconditioned import (
    bias_correction,
    decaying_maximum,
    diagonal_entries,
    kernel_average,
    moving_average,
    squared_row_norms,
)
from splatopt.optim.types import Group

Probes = Sequence[Tensor]
"""One tensor for each probe, in the parameter's shape."""


class CurvatureDiagonal(RefusesGradScaler, torch.optim.Optimizer):
    """θ ← θ - rate · m̂ / (|D| + damping), with m̂ the bias-corrected mean of gradients and D from Hessian probes.

    A refresh takes Hv on the step's own minibatch and graph, by differentiating twice. Steps 1 to ``warmup``
    refresh, then every ``interval``-th does, and one that meets a new parameter. The first refresh, and each that
    meets a new parameter, averages over ``first_probes`` probes. With a ``floor``, |D| is nowhere below that part of
    its tensor's root mean square. Groups count steps and refreshes; a parameter that was frozen in some of them has
    counts of its own, by which its means are corrected.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        damping: float = 1e-4,
        warmup: int = 50,
        interval: int = 100,
        first_probes: int = 1,
        floor: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Start with empty means.

        Args:
            params: Parameters, or groups of them; all groups are refreshed in the same steps.
            lr: Rate.
            betas: Decays of the mean of gradients, per step, and of D, per refresh.
            damping: Added to the root of D.
            warmup: First steps that all refresh, at least 1.
            interval: Steps between refreshes later.
            first_probes: Probes of the first refresh and of those that meet a new parameter.
            floor: Lower bound of |D| in parts of the root mean square of its tensor's. Rows of H that are zero by
                chance, as an idle unit's, would else step by rate · m̂ / damping on the day that they are not.
            generator: Source of the probes; one with seed 0 when None. Its state is the caller's to keep: it is not in
                ``state_dict``, nor are ``warmup``, ``interval``, ``first_probes`` and ``floor``.

        Raises:
            ValueError: A number is out of its range.
        """
        check_positive("lr", lr)
        check_positive("damping", damping)
        check_fraction("betas[0]", betas[0])
        check_fraction("betas[1]", betas[1])
        check_fraction("floor", floor)
        for name, count in (("warmup", warmup), ("interval", interval), ("first_probes", first_probes)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.generator = generator or torch.Generator().manual_seed(0)
        self._closure = Closure()
        self.warmup, self.interval, self.first_probes, self.floor = warmup, interval, first_probes, floor
        defaults = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "damping": damping, "steps": 0, "refreshes": 0}
        super().__init__(params, defaults)

    @abstractmethod
    def refresh(self, diagonal: Tensor, probes: Probes, products: Probes, beta2: float) -> None:
        """Bring D up to date with probes v and products Hv, in place."""

    @abstractmethod
    def scale(self, diagonal: Tensor, beta2: float, refreshes: int) -> Tensor:
        """Return |D| of so many refreshes as the step divides by it, in units of the Hessian, of new memory."""

    def rate(self, group: Group) -> float:
        """Return the rate of the step at hand."""
        return group["lr"]

    def is_refresh(self, step: int) -> bool:
        """Whether step 1, 2, … takes new probes."""
        return step <= self.warmup or step % self.interval == 0

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss at the point it started from.

        Args:
            closure: Returns the loss with its graph.

        Raises:
            InputError: There is no closure, or a ``GradScaler`` calls.
        """
        self.refuse_scaler()
        params = [param for group in self.param_groups for param in _trained(group)]
        fresh = [param for param in params if not self.state[param]]
        refresh = self.is_refresh(self.param_groups[0]["steps"] + 1) or bool(fresh)
        loss = self._closure.run(closure, type(self).__name__, params, keeps_graph=refresh)
        if not params:
            return loss.detach()
        self._begin_states()
        backward = bool(self._closure.calls_backward)
        gradients: Sequence[Tensor] = ()
        if refresh or not backward:
            gradients = _gradients(loss, params, create_graph=refresh)
        for place, param in enumerate(params):
            if not backward:
                param.grad = gradients[place].detach()
            elif param.grad is None:
                param.grad = torch.zeros_like(param)
        if refresh:
            probes, products = self._probe(params, gradients, self.first_probes if fresh else 1)
        with torch.no_grad():
            if refresh:
                self._refresh(probes, products)
            self._descend()
        return loss.detach()

    def _begin_states(self) -> None:
        """Make the state of parameters that are met for the first time; late ones count for themselves."""
        for group in self.param_groups:
            counts = {key: 0 for key in ("steps", "refreshes") if group[key]}
            for param in _trained(group):
                if not self.state[param]:
                    self.state[param] |= {name: torch.zeros_like(param) for name in ("mean", "diagonal", "inverse")}
                    self.state[param] |= counts

    def _count_one(self, group: Group, key: str) -> None:
        """Count one of the steps or refreshes of a group; a parameter that sits one out has its own count from then."""
        for param in group["params"]:
            kept = self.state.get(param)
            if not kept:
                continue
            if not param.requires_grad:
                kept.setdefault(key, group[key])
            elif key in kept:
                kept[key] += 1
        group[key] += 1

    def _probe(
        self, params: list[Tensor], gradients: Sequence[Tensor], count: int
    ) -> tuple[list[Probes], list[Probes]]:
        """Return v and Hv of each parameter, ``count`` of them."""
        probes = [[rademacher(param.detach(), self.generator) for param in params] for _ in range(count)]
        # A loss that is linear in a parameter leaves its gradient without a graph: those rows of H are zero.
        curved = [index for index, gradient in enumerate(gradients) if gradient.requires_grad]
        products = [
            torch.autograd.grad(
                [gradients[index] for index in curved],
                params,
                [probe[index] for index in curved],
                retain_graph=number + 1 < count,
                materialize_grads=True,
            )
            if curved
            else [torch.zeros_like(param) for param in params]
            for number, probe in enumerate(probes)
        ]
        return list(zip(*probes, strict=True)), list(zip(*products, strict=True))

    def _refresh(self, probes: list[Probes], products: list[Probes]) -> None:
        position = 0
        for group in self.param_groups:
            self._count_one(group, "refreshes")
            for param in _trained(group):
                state = self.state[param]
                self.refresh(state["diagonal"], probes[position], products[position], group["beta2"])
                refreshes = state.get("refreshes", group["refreshes"])
                scale = self.scale(state["diagonal"], group["beta2"], refreshes)
                if self.floor:
                    scale.clamp_(min=self.floor * scale.square().mean().sqrt())
                state["inverse"] = scale.add_(group["damping"]).reciprocal_()
                position += 1

    def _descend(self) -> None:
        """Take the step, one pass over each of mean and parameter."""
        for group in self.param_groups:
            self._count_one(group, "steps")
            params = _trained(group)
            if not params:
                continue
            states = [self.state[param] for param in params]
            means, inverses = ([state[name] for state in states] for name in ("mean", "inverse"))
            gradients = [param.grad for param in params if param.grad is not None]
            torch._foreach_lerp_(means, gradients, 1 - group["beta1"])
            rate, steps = float(self.rate(group)), [state.get("steps", group["steps"]) for state in states]
            factors = [-(rate / bias_correction(group["beta1"], count)) for count in steps]
            torch._foreach_addcmul_(params, means, inverses, factors)


def _gradients(loss: Tensor, params: list[Tensor], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Return ∂loss/∂θ of each parameter."""
    with torch.enable_grad():
        try:
            return torch.autograd.grad(loss, params, create_graph=create_graph, materialize_grads=True)
        except RuntimeError as error:
            raise RuntimeError(f"the closure must return the loss with its graph, unspent: {error}") from error


def _trained(group: Group) -> list[Tensor]:
    """Parameters of a group that are not frozen."""
    return [param for param in group["params"] if param.requires_grad]


class ESGD(CurvatureDiagonal):
    """Equilibrated SGD (Dauphin et al. 2015; Chng, Saratchandran and Lucey 2025), D = mean of (Hv)².

    The step divides by √(D/(1-β₂ᵏ)) + damping, k the number of refreshes so far: the 2-norms of the Hessian's
    rows. The published code takes the number of steps for k, which makes D smaller than it is and the rate up to
    3.6 times as large.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.15, **settings: Any) -> None:
        """Start; ``settings`` are those of :class:`CurvatureDiagonal`."""
        super().__init__(params, lr, **{"first_probes": 10, **settings})

    def refresh(self, diagonal: Tensor, probes: Probes, products: Probes, beta2: float) -> None:
        """D ← β₂D + (1-β₂)·mean of (Hv)²."""
        moving_average(diagonal, squared_row_norms(products), beta2)

    def scale(self, diagonal: Tensor, beta2: float, refreshes: int) -> Tensor:
        """Return √(D/(1-β₂ᵏ))."""
        return (diagonal / bias_correction(beta2, refreshes)).sqrt_()


class ESGDMax(CurvatureDiagonal):
    """ESGD with D ← max(β₂D, (Hv)²) and a rate that warms up, rate · (1 - 0.99ᵗ) at step t."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.15, *, rate_decay: float = 0.99, **settings: Any
    ) -> None:
        """Start; ``rate_decay`` is the 0.99 of the warm-up, ``settings`` are those of :class:`CurvatureDiagonal`."""
        check_fraction("rate_decay", rate_decay)
        self.rate_decay = rate_decay
        super().__init__(params, lr, **{"first_probes": 10, **settings})

    def refresh(self, diagonal: Tensor, probes: Probes, products: Probes, beta2: float) -> None:
        """D ← max(β₂D, mean of (Hv)²)."""
        decaying_maximum(diagonal, squared_row_norms(products), beta2)

    def scale(self, diagonal: Tensor, beta2: float, refreshes: int) -> Tensor:
        """Return √D."""
        return diagonal.sqrt()

    def rate(self, group: Group) -> float:
        """Return rate · (1 - 0.99ᵗ)."""
        return group["lr"] * (1 - self.rate_decay ** group["steps"])


class AdaHessianE(ESGD):
    """AdaHessian as its code has it: (v⊙Hv)² = (Hv)², so ESGD that refreshes in every step (Yao et al. 2021)."""

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.15, **settings: Any) -> None:
        """Start; ``settings`` are those of :class:`CurvatureDiagonal` but ``interval``."""
        super().__init__(params, lr, **settings, interval=1)


class AdaHessianJ(CurvatureDiagonal):
    """AdaHessian as it is described: Jacobi's |diag H|, D = mean of v⊙Hv, in every step.

    The step divides by |D/(1-β₂ᵏ)| + damping, averaged over a convolution's kernel.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 1e-3, **settings: Any) -> None:
        """Start; ``settings`` are those of :class:`CurvatureDiagonal` but ``interval``."""
        super().__init__(params, lr, **{"first_probes": 10, **settings}, interval=1)

    def refresh(self, diagonal: Tensor, probes: Probes, products: Probes, beta2: float) -> None:
        """D ← β₂D + (1-β₂)·mean of v⊙Hv."""
        moving_average(diagonal, diagonal_entries(probes, products), beta2)

    def scale(self, diagonal: Tensor, beta2: float, refreshes: int) -> Tensor:
        """Return |D/(1-β₂ᵏ)|."""
        return kernel_average(diagonal / bias_correction(beta2, refreshes)).abs()
