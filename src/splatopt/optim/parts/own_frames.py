"""Adam's moments in each Gaussian's own frame: steps that turn and scale with the world.

A Gaussian's centre μ moves in units of its own size S along its own axes R, and its axes turn about themselves:

    μ ← μ + R S ξ,                ∂L/∂ξ = S Rᵀ ∂L/∂μ
    q ← q ⊗ (cos|δ|/2, δ/|δ| sin|δ|/2),   ∂L/∂δ = ½ Im(q̄ ∂L/∂q)

The turn keeps |q|, and ∂L/∂δ is the same for any |q|. Moments of ξ and δ (3 numbers for a quaternion's 4) go along with
the Gaussian, so nothing is transported from step to step (after Bécigneul and Ganea 2019, arXiv 1810.00760). Harmonics
of one degree mix when the world turns, so their entries share one second moment, that of their mean square.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.constants import MAX_LOG_SCALE
from splatopt.core.objective import Batch, Evaluation, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.schema import GAUSSIAN_TENSORS, rotation_matrices, sh_degree_of
from splatopt.core.state import PerParameter
from splatopt.optim.parts.adam import AdamNumbers, adam_quotient
from splatopt.optim.parts.direction import Change, Direction, Point, Whole


def own_axes(parameters: Tensors) -> Float[Tensor, "n 3 3"]:
    """Return R S of each Gaussian, whose columns are its axes as long as its standard deviations, world units."""
    scales = parameters["log_scales"].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    return rotation_matrices(parameters["quats"]) * scales[:, None, :]


def turn_gradient(quats: Float[Tensor, "n 4"], gradient: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3"]:
    """Return ∂L/∂δ = ½ Im(q̄ g) at δ = 0 of the turn q ⊗ exp(δ/2), per radian about the own axes."""
    w, x, y, z = quats.unbind(dim=1)
    a, b, c, d = gradient.unbind(dim=1)
    parts = (w * b - x * a - y * d + z * c, w * c + x * d - y * a - z * b, w * d - x * c + y * b - z * a)
    return torch.stack(parts, dim=1).mul_(0.5)


def turned(quats: Float[Tensor, "n 4"], turn: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Return q ⊗ (cos|δ|/2, δ/|δ| sin|δ|/2), as long as q: a turn by |δ| radians about the own axis δ."""
    half = turn.norm(dim=1, keepdim=True) / 2
    vector = turn / 2 * torch.sinc(half / torch.pi)
    w, x, y, z = quats.unbind(dim=1)
    b, c, d = vector.unbind(dim=1)
    a = half.squeeze(1).cos()
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + d * y - c * z,
            a * y + c * w + b * z - d * x,
            a * z + d * w + c * x - b * y,
        ],
        dim=1,
    )


class OwnFrameMoments(Direction):
    """Adam's step of each parameter in the own frames of Gaussians; of what is no cloud's, Adam's own step."""

    def __init__(self, host: Optimizer, options: AdamNumbers) -> None:
        """Start with empty means.

        Args:
            host: The optimizer.
            options: Rates, the means' in standard deviations and the quaternions' in radians, betas and epsilon.
        """
        super().__init__(host)
        self.options = options
        parameters = dict(self.objective.parameters)
        self._is_cloud = set(parameters) == set(GAUSSIAN_TENSORS)
        if self._is_cloud:
            parameters["quats"] = parameters["means"]
        self.exp_avg = host.remember(PerParameter("exp_avg", parameters, degree=1))
        self.exp_avg_sq = host.remember(PerParameter("exp_avg_sq", parameters, degree=2))
        self.rates: dict[str, float] = {}

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient, and take up the rates of this step."""
        rates, other_rate = self.options.rates(1.0, progress), self.options.other_rate(progress)
        self.rates = {name: rates.get(name, other_rate) for name in self.objective.parameters}
        return super().evaluate(batch, progress)

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield the steps of all parameters, those of means and quaternions taken back to the world's coordinates."""
        if not self._is_cloud:
            for name in at.parameters:
                yield name, Whole(self._step(name, at.gradient[name]))
            return
        axes, quats = own_axes(at.parameters), at.parameters["quats"].clone()
        for name in at.parameters:
            gradient = at.gradient[name]
            if name == "means":
                step = self._step(name, (axes.mT @ gradient[:, :, None]).squeeze(2))
                yield name, Whole((axes @ step[:, :, None]).squeeze(2))
            elif name == "quats":
                step = self._step(name, turn_gradient(quats, gradient))
                yield name, Whole(turned(quats, step) - quats)
            else:
                yield name, Whole(self._step(name, gradient, by_band=name == "sh_rest"))

    def _step(self, name: str, gradient: Tensor, by_band: bool = False) -> Tensor:
        """Bring the means of ``name`` up to date and return Adam's step."""
        moments = self.exp_avg[name], self.exp_avg_sq[name]
        square = band_means(gradient.square()) if by_band else None
        change = adam_quotient(gradient, *moments, self.rates[name], self.steps.value, self.options, square)
        return change.numerator.div(change.denominator).mul_(-change.factor)


def band_means(values: Float[Tensor, "n k 3"]) -> Float[Tensor, "n k 3"]:
    """Return, in place of each entry, the mean over the harmonics of its degree and colour channel."""
    begin = 0
    for degree in range(1, sh_degree_of(values) + 1):
        band = values[:, begin : begin + 2 * degree + 1]
        band.copy_(band.mean(dim=1, keepdim=True).expand_as(band))
        begin += 2 * degree + 1
    return values
