"""One episode of meta-training: a few learned steps, and how good each of them was.

The inner loop takes T steps θ₊ = θ + Δ(θ, g, z; w) with the network's weights w, and θ̄ is the running average of its
iterates: the optimizer's own, but for what was before the episode. With L̄ the loss (1-λ)·L1 + λ·(1-SSIM) of one view,
and S the last third of the steps::

    meta-loss = mean over S of log mean L̄(targets) at θ̄                               what the steps are for
              + a · 1/T Σₜ log mean L̄(inputs) at θ, t from 1 to T-1
              + b · mean over S of mean relu(L̄ᵥ(s) - L̄ᵥ(before)) / mean L̄ at θ̄      stability: no view gets worse
              + c · 1/T Σₜ mean |Δ/rate| where g ≈ 0 or Δ·g > 0                     deltas: no step without a reason
              + d · mean over S of mean LPIPS(targets) at θ̄                           where its weights are at hand

Before is the look before, at θ̄; for the first look it is where the episode began, at θ. The inputs' loss is that of
the gradients after the first, so the last step has none.

It is differentiated through θ and z of all T steps, not through g, nor through the quotient's mean L̄. The renderer's
own gradient enters as a vector: the derivative of the meta-loss by w is that of Σ <θ̄(w), ∂meta-loss/∂θ̄>.

At the last iterate after a few steps, shorter steps always look better: they leave less of the noise in the gradient
(Wu et al. 2018, "Understanding Short-Horizon Bias in Stochastic Meta-Optimization"). In θ̄ that noise is averaged away.
Logarithms make scenes, and early and late steps, count alike. Sources: Pearl et al. 2026, "Learn2Splat" (unroll,
stability, deltas); the logarithm and the average are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Tensors
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.features import build_inputs
from splatopt.meta.inner import InnerRates, InnerState
from splatopt.meta.neighbours import NEIGHBOUR_REFRESH, nearest_others
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.perceptual import ImageLoss, image_loss_gradient
from splatopt.meta.step import Step, clock_of, learned_step
from splatopt.meta.tasks import MetaTask
from splatopt.optim.averaging import RunningAverage, average_weight
from splatopt.raster.cpu import NativeRenderer

_MIN_LOSS = 1e-4
_ZERO = 1e-3
"""A normalised gradient below this counts as zero."""


@dataclass(frozen=True)
class LossOptions:
    """What a good step is."""

    inputs_weight: float = 0.1
    """a: the input views' share beside the held-out views'. Unit: factor. Source: Learn2Splat looks at 4 beside 6;
    less here, since they are looked at where the last iterate is."""

    stability_weight: float = 0.3
    """b: penalty on views that get worse from one step to the next. Unit: factor. Source: Learn2Splat names none."""

    delta_weight: float = 0.003
    """c: penalty on steps along a gradient or without one. Unit: per Adam step. Source: Learn2Splat names none."""

    lpips_weight: float = 0.5
    """Weight of LPIPS (vgg) of the held-out views, where its weights are on the machine; 0 for none. Unit: factor.
    Source: Learn2Splat."""

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        for name in ("inputs_weight", "stability_weight", "delta_weight", "lpips_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass
class EpisodeState:
    """A scene on its way: what is fitted, and what the optimizer remembers.

    Attributes:
        task: Scene and views; its cloud is moved by :func:`run_episode` and :func:`roll_out`.
        state: The learned run's memory.
        near: Nearest others of each Gaussian.
        horizon: Steps that a network with a clock believes it has.
    """

    task: MetaTask
    state: InnerState
    near: Tensor
    horizon: int = 0

    @classmethod
    def begin(cls, task: MetaTask, network: LearnedNetwork, horizon: int = 0) -> EpisodeState:
        """Return ``task`` before the first step."""
        parameters = task.objective.parameters
        near = _nearest(task, network)
        return cls(task, InnerState.begin(parameters, network.options.latent), near, horizon)


def _nearest(task: MetaTask, network: LearnedNetwork) -> Tensor:
    """Return each Gaussian's nearest others, searched for on as many threads as the renderer has."""
    renderer = task.objective.renderer
    threads = renderer.threads if isinstance(renderer, NativeRenderer) else 1
    return nearest_others(task.objective.parameters["means"], network.options.neighbours, threads)


@dataclass(frozen=True)
class EpisodeResult:
    """What an episode saw.

    Attributes:
        meta_loss: Its value.
        target_loss: Mean loss of the held-out views after each step of the last third.
        psnr: Their mean PSNR after the last step, dB.
        gate: Mean logarithm of the gates.
        moved: Mean |Δ/rate| over rows and groups.
    """

    meta_loss: float
    target_loss: tuple[float, ...]
    psnr: float
    gate: float
    moved: float


def evaluate_step(
    network: LearnedNetwork,
    rates: InnerRates,
    episode_state: EpisodeState,
    parameters: Tensors,
    views: Sequence[int],
) -> tuple[Step, float, dict[str, Tensor]]:
    """Evaluate the gradient at the episode state's cloud, and the network's step there.

    Args:
        network: Predicts the step.
        rates: The Adam inside.
        episode_state: Where the scene stands; its memory takes the evaluation in.
        parameters: The values of the episode state's cloud, with the graph that led to them.
        views: The step's views.

    Returns:
        The step, the loss on ``views`` and its gradient (in buffers that the next evaluation reuses).
    """
    state, objective = episode_state.state, episode_state.task.objective
    if state.steps % NEIGHBOUR_REFRESH == 0:
        episode_state.near = _nearest(episode_state.task, network)
    with torch.no_grad():
        evaluation = objective.gradient(views)
        state.observe(evaluation.gradient, evaluation.loss, evaluation.seen, rates)
        seen = torch.ones_like(state.age, dtype=torch.bool) if evaluation.seen is None else evaluation.seen.clone()
    inputs = build_inputs(parameters, evaluation.gradient, state, rates, objective.length_scale, seen)
    clock = clock_of(network, state.steps - 1, episode_state.horizon)
    step = learned_step(network, inputs, state, rates, objective.length_scale, episode_state.near, clock)
    return step, evaluation.loss, dict(evaluation.gradient)


@torch.no_grad()
def roll_out(
    network: LearnedNetwork,
    rates: InnerRates,
    episode_state: EpisodeState,
    steps: int,
    generator: torch.Generator,
    average: RunningAverage | None = None,
) -> bool:
    """Let the network as it is take ``steps`` steps, and ``average`` follow; False where the numbers broke down."""
    objective = episode_state.task.objective
    for _ in range(steps):
        parameters = objective.parameters
        step, loss, _ = evaluate_step(
            network, rates, episode_state, parameters, episode_state.task.draw_views(generator)
        )
        if not math.isfinite(loss) or not _finite(step.changes):
            return False
        episode_state.state.latent = step.latent
        for name, parameter in parameters.items():
            parameter.add_(step.changes[name])
        if average is not None:
            average.take_in(parameters)
    return True


def run_episode(
    network: LearnedNetwork,
    rates: InnerRates,
    episode_state: EpisodeState,
    steps: int,
    options: LossOptions,
    generator: torch.Generator,
    *,
    delta_penalty: bool = True,
    perceptual: ImageLoss | None = None,
) -> EpisodeResult | None:
    """Take ``steps`` steps and add the meta-loss's gradient to the network's weights.

    Args:
        network: Its ``.grad`` is added to.
        rates: The Adam inside.
        episode_state: Where it begins; stands after the last step when this returns.
        steps: T.
        options: The meta-loss.
        generator: Draws the views.
        delta_penalty: Whether steps without a reason are penalised.
        perceptual: A distance of images, LPIPS, whose mean over the held-out views is added after each step.

    Returns:
        What was seen, or None where the numbers broke down: then no gradient was added.
    """
    task, objective = episode_state.task, episode_state.task.objective
    values = {name: value.clone() for name, value in objective.parameters.items()}
    averages = values
    # A new scene is looked at after every step: its first ones are taken once.
    looks = steps if episode_state.state.steps == 0 else max(1, steps // 3)
    found = _MetaLoss(task, options, steps, looks)
    for number in range(steps):
        step, input_loss, gradient = evaluate_step(network, rates, episode_state, values, task.draw_views(generator))
        if not math.isfinite(input_loss) or not _finite(step.changes):
            return None
        if number:  # the loss of the input views at what the step before left
            found.add_inputs(values, input_loss, gradient)
        found.note(step, gradient if delta_penalty else None)
        values = {name: value + step.changes[name] for name, value in values.items()}
        averages = _averaged(averages, values, episode_state.state.steps, number, rates)
        episode_state.state.latent = step.latent
        if number >= steps - looks and not found.look_at(averages, perceptual):
            return None
        _move(objective.parameters, values)
    found.surrogate().backward()
    episode_state.state = episode_state.state.clone()
    psnr = _psnr(task, averages)
    _move(objective.parameters, values)
    return EpisodeResult(found.value, tuple(found.targets), psnr, found.gates, found.moved)


def _psnr(task: MetaTask, values: Tensors) -> float:
    """Return the mean PSNR of the held-out views at ``values``, where the objective stands then."""
    _move(task.objective.parameters, values)
    return task.objective.gradient(task.targets).metrics["psnr"]


class _MetaLoss:
    """The meta-loss of an episode, and its gradient by the values that the steps left: Σ weight · value.

    Attributes:
        value: The meta-loss.
        penalty: Of steps without a reason, a mean over the steps; it carries its own graph.
        targets: Mean loss of the held-out views at each look.
        gates: Mean gate of the network.
        moved: Mean length of its corrections.
    """

    def __init__(self, task: MetaTask, options: LossOptions, steps: int, looks: int) -> None:
        """Begin where the objective stands; ``looks`` of the ``steps`` are looked at from the held-out views."""
        self.value, self.gates, self.moved = 0.0, 0.0, 0.0
        self.targets: list[float] = []
        self.penalty = torch.zeros(())
        self._task, self._options, self._steps, self._looks = task, options, steps, looks
        self._before = _view_losses(task)
        self._weighted: list[tuple[Tensor, Tensor]] = []

    def add_inputs(self, values: Tensors, loss: float, gradient: Tensors) -> None:
        """Add the loss of a step's input views at ``values``."""
        inputs_weight = self._options.inputs_weight
        self.value += inputs_weight * math.log(max(loss, _MIN_LOSS)) / self._steps
        weight = inputs_weight / (self._steps * max(loss, _MIN_LOSS))
        self._pull(values, {name: weight * gradient[name] for name in GAUSSIAN_TENSORS})

    def look_at(self, averages: Tensors, perceptual: ImageLoss | None) -> bool:
        """Move the objective to ``averages`` and add the held-out views' part there.

        Returns:
            False where a loss is not finite; nothing was added then.
        """
        options, looks, before = self._options, self._looks, self._before
        _move(self._task.objective.parameters, averages)
        now, slope = _target_gradient(self._task, before, options)
        if not all(math.isfinite(loss) for loss in now):
            return False
        rise = sum(max(0.0, new - old) for new, old in zip(now, before, strict=True)) / len(now)
        self.targets.append(sum(now) / len(now))
        scale = max(self.targets[-1], _MIN_LOSS)
        self.value += (math.log(scale) + options.stability_weight * rise / scale) / looks
        self._pull(averages, {name: slope[name] / looks for name in GAUSSIAN_TENSORS})
        if perceptual is not None and options.lpips_weight:
            distance, slope = _perceptual_gradient(self._task, perceptual)
            self.value += options.lpips_weight * distance / looks
            self._pull(averages, {name: options.lpips_weight / looks * slope[name] for name in GAUSSIAN_TENSORS})
        self._before = now
        return True

    def _pull(self, values: Tensors, weights: Tensors) -> None:
        self._weighted += [(values[name], weights[name]) for name in GAUSSIAN_TENSORS]

    def note(self, step: Step, gradient: Tensors | None) -> None:
        """Take in a step's gates and lengths, and what it costs that it has no reason in ``gradient``."""
        if gradient is not None and self._options.delta_weight:
            penalty = _delta_penalty(step, gradient) / self._steps
            self.penalty = self.penalty + penalty
            self.value += self._options.delta_weight * float(penalty.detach())
        self.gates += float(step.gates.detach().mean()) / self._steps
        lengths = [value.detach().abs().mean() for value in step.relative.values()]
        self.moved += float(sum(lengths)) / (len(GAUSSIAN_TENSORS) * self._steps)

    def surrogate(self) -> Tensor:
        """Return what has the meta-loss's gradient, that of ``penalty`` included, by the network's weights."""
        product = sum((value * weight).sum() for value, weight in self._weighted)
        return self._options.delta_weight * self.penalty + product


def _averaged(averages: Tensors, values: Tensors, steps: int, number: int, rates: InnerRates) -> dict[str, Tensor]:
    """Return θ̄ after a run's ``steps`` steps, ``number`` of them before in its episode; what was before is forgotten.

    No row comes or goes in a run, so that all are as many steps old.
    """
    if not rates.average_power:
        return dict(values)
    weight = average_weight(torch.tensor(float(steps)), rates.average_power).item()
    weight = max(weight, 1 / (number + 1))
    return {name: torch.lerp(averages[name], value, weight) for name, value in values.items()}


def _target_gradient(
    task: MetaTask, before: Sequence[float], options: LossOptions
) -> tuple[list[float], dict[str, Tensor]]:
    """Return each held-out view's loss, and the gradient of their part of the meta-loss by θ.

    That is mean gradient / mean loss, with the views that got worse counted 1 + b times.
    """
    losses: list[float] = []
    total: dict[str, Tensor] = {}
    for view, old in zip(task.targets, before, strict=True):
        evaluation = task.objective.gradient((view,))
        losses.append(evaluation.loss)
        weight = 1 + (options.stability_weight if evaluation.loss > old else 0.0)
        for name, gradient in evaluation.gradient.items():
            total[name] = total[name].add_(gradient, alpha=weight) if name in total else weight * gradient
    scale = 1 / (len(losses) * max(sum(losses) / len(losses), _MIN_LOSS))
    return losses, {name: gradient.mul_(scale) for name, gradient in total.items()}


def _perceptual_gradient(task: MetaTask, loss: ImageLoss) -> tuple[float, dict[str, Tensor]]:
    """Return the mean of an image loss over the held-out views, and its gradient by θ."""
    slopes = [image_loss_gradient(task.objective, view, loss) for view in task.targets]
    mean = {name: torch.stack([slope[name] for _, slope in slopes]).mean(dim=0) for name in GAUSSIAN_TENSORS}
    return sum(value for value, _ in slopes) / len(slopes), mean


def _view_losses(task: MetaTask) -> list[float]:
    return [task.objective.value((view,)) for view in task.targets]


def _delta_penalty(step: Step, gradient: Tensors) -> Tensor:
    """Return mean |Δ/rate| over the entries whose gradient is about zero or points where the step goes."""
    total, count = torch.zeros(()), 0
    for name, relative in step.relative.items():
        g = gradient[name]
        if not g.numel():
            continue
        size = g.square().mean().sqrt().clamp(min=1e-30)
        without_reason = (g.abs() < _ZERO * size) | (g * relative.detach() > 0)
        total = total + (relative.abs() * without_reason).mean()
        count += 1
    return total / max(1, count)


@torch.no_grad()
def _move(parameters: Tensors, values: Tensors) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _finite(changes: Tensors) -> bool:
    return all(bool(torch.isfinite(change).all()) for change in changes.values())
