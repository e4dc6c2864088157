"""Shampoo: a Kronecker-factored preconditioner from gradients alone, as a ``torch.optim`` optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from splatopt.core.checks import check_fraction, check_positive
from splatopt.optim.habits import RefusesGradScaler
from splatopt.optim.preconditioned import bias_correction, moving_average
from splatopt.optim.types import Group


class Shampoo(RefusesGradScaler, torch.optim.Optimizer):
    """Shampoo (Gupta, Koren and Singer 2018), grafted to SGD (Anil et al. 2020).

    With the gradient G of a weight (m, n)::

        L ← βL + (1-β) GGᵀ          R ← βR + (1-β) GᵀG
        P = (L̂ + εt_L I)^-¼ M̂ (R̂ + εt_R I)^-¼
        W ← W - rate · ‖M̂‖/‖P‖ · P

    M is the mean of gradients, hats are corrected for their start at zero, and t the mean of a factor's diagonal.
    The direction is Shampoo's and the length that of SGD with momentum, so a rate means what it means there. Vectors
    are rows of one factor with the exponent -½; weights with more dimensions are flattened to (m, n). A GGᵀ that is not
    finite is left out of its factor, and a root that cannot be taken stays what it was.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 0.01,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-4,
        interval: int = 20,
    ) -> None:
        """Start with empty factors.

        Args:
            params: Parameters, or groups of them.
            lr: Rate.
            betas: Decays of the mean of gradients and of the factors, per step.
            epsilon: Damping of a factor, as a share of the mean of its diagonal.
            interval: Steps between new roots.

        Raises:
            ValueError: A number is out of its range.
        """
        check_positive("lr", lr)
        check_positive("epsilon", epsilon)
        check_fraction("betas[0]", betas[0])
        check_fraction("betas[1]", betas[1])
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        defaults = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "epsilon": epsilon, "interval": interval}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> Tensor | float | None:  # type: ignore[override]
        """Take one step from the gradients at hand.

        Args:
            closure: Sets the gradients and returns the loss; None where they are set.

        Returns:
            What the closure returned.

        Raises:
            InputError: A ``GradScaler`` calls.
        """
        self.refuse_scaler()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_one(param, group)
        return loss

    def _step_one(self, param: Tensor, group: Group) -> None:
        assert param.grad is not None
        gradient = param.grad.reshape(param.shape[0] if param.dim() > 1 else 1, -1)
        sides = kronecker_sides(gradient)
        state = self.state[param]
        if not state:
            state["mean"] = torch.zeros_like(gradient)
            state["factors"] = [torch.zeros_like(side) for side in sides]
            state["roots"] = [torch.eye(len(side), dtype=side.dtype, device=side.device) for side in sides]
            state["steps"] = torch.zeros(())
        state["steps"] += 1
        steps = int(state["steps"])
        moving_average(state["mean"], gradient, group["beta1"])
        for factor, side in zip(state["factors"], sides, strict=True):
            if torch.isfinite(side).all():
                moving_average(factor, side, group["beta2"])
        if steps % group["interval"] == 1 or group["interval"] == 1:
            correction = bias_correction(group["beta2"], steps)
            exponent = -0.5 / len(sides)
            for root, factor in zip(state["roots"], state["factors"], strict=True):
                _refresh(root, factor / correction, exponent, group["epsilon"])
        mean = state["mean"] / bias_correction(group["beta1"], steps)
        left = state["roots"][0] @ mean if len(sides) == 2 else mean
        direction = left @ state["roots"][-1]
        # In double precision the square of any finite number is one.
        own, other = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in (mean, direction))
        length = own / other.clamp(min=torch.finfo(mean.dtype).tiny)
        param.sub_((direction * (group["lr"] * length)).reshape(param.shape))


def _refresh(root: Tensor, matrix: Tensor, exponent: float, epsilon: float) -> None:
    """Put the power of a matrix in the place of ``root``, unless it cannot be taken."""
    if not torch.isfinite(matrix).all():
        return
    try:
        root.copy_(matrix_power(matrix, exponent, epsilon))
    except torch.linalg.LinAlgError:  # it may not converge where entries differ by more than their precision
        return


def kronecker_sides(gradient: Tensor) -> list[Tensor]:
    """Return [GGᵀ, GᵀG] of a matrix G (m, n), and [GᵀG] of a row.

    Their product with exponent -¼ a side bounds the inverse root of full AdaGrad: for one gradient g = vec(G),
    g gᵀ ≤ rank · (GGᵀ)^½ ⊗ (GᵀG)^½.

    Args:
        gradient: (m, n).
    """
    right = gradient.T @ gradient
    return [right] if len(gradient) == 1 else [gradient @ gradient.T, right]


def matrix_power(matrix: Tensor, exponent: float, epsilon: float) -> Tensor:
    """Return (A + εtI)^p of a symmetric, positive semidefinite A, t the mean of its diagonal.

    Args:
        matrix: A, (n, n).
        exponent: p, negative.
        epsilon: ε; the zero matrix gives the identity.
    """
    mean = float(matrix.diagonal().double().mean())
    if mean <= 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(matrix)
    # Rounding may leave eigenvalues below zero.
    powers = (values.clamp(min=0) + epsilon * mean) ** exponent
    return (vectors * powers) @ vectors.T
