"""``learned``: a network, meta-trained once over many scenes, takes the steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_max_count, check_positive
from splatopt.core.objective import Batch, Evaluation, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.meta.features import adam_inputs, build_inputs
from splatopt.meta.fused import FusedNetwork, fits
from splatopt.meta.inner import InnerRates, InnerState
from splatopt.meta.loss_watch import LossWatch
from splatopt.meta.memory import native_row_bytes, torch_row_bytes
from splatopt.meta.neighbours import NEIGHBOUR_REFRESH, nearest_others
from splatopt.meta.step import adam_changes, clock_of, learned_step
from splatopt.meta.weights import LearnedWeights, load_weights
from splatopt.optim.averaging import RunningAverage
from splatopt.optim.growth import GrowthBound, check_growth
from splatopt.optim.visited_views import VisitedViews, check_full_color_views

_ON_A_GPU = ("triton", "gsplat")
"""Renderers whose Gaussians lie on a GPU; before a run those that it is counted for still lie on the host."""

_EDITED_SHARE = 0.5
"""Share of rows from which on an edit makes a scene of another loss. Unit: fraction. Source: an opacity reset edits
all rows, clones and splits fewer."""


@dataclass(frozen=True)
class LearnedOptions:
    """A network's step, with Adam's to fall back on."""

    weights: str = "tiny"
    """Weights that come with splatopt, by name, or the path of a .safetensors file that splatopt meta-train wrote.
    Unit: none. Source: models/README.md."""

    neighbour_refresh: int = NEIGHBOUR_REFRESH
    """Steps between two searches for the nearest Gaussians. Unit: steps. Source: a search costs some ten steps of
    the network, and means move little."""

    fallback_rise: float = 0.5
    """The step becomes Adam's for good when the loss, averaged over some fifty steps, stays by this above its
    lowest. Unit: fraction. Source: views differ by less than that, an unstable step soon by more."""

    fallback_window: int = 100
    """For how long it must stay there. Unit: steps. Source: twice what the average looks back."""

    max_growth: float = 16.0
    """No Gaussian becomes larger than this multiple of what it began as; 0 for no bound. Unit: factor.
    Source: synthetic scenes, docs/meta.md."""

    full_color_views: int = 32
    """Different views visited from which on the colour's higher bands take their whole rate; with fewer, that share of
    it; 0 for the whole rate always. Unit: views. Source: synthetic scenes, docs/meta.md."""

    averaged: bool = True
    """The scene is the running average of the iterates; with --learned.no-averaged the last one. Unit: none.
    Source: the late steps scatter, docs/results/learned.md."""

    def __post_init__(self) -> None:
        """Refuse what can never be met."""
        if self.neighbour_refresh < 1:
            raise InputError(f"neighbour_refresh must be at least 1 step, got {self.neighbour_refresh}")
        if self.fallback_window < 1:
            raise InputError(f"fallback_window must be at least 1 step, got {self.fallback_window}")
        for name in ("neighbour_refresh", "fallback_window", "full_color_views"):
            check_max_count(name, getattr(self, name))
        check_positive("fallback_rise", self.fallback_rise)
        check_growth(self.max_growth)
        check_full_color_views(self.full_color_views)


class Learned(Optimizer):
    """A learned step: Adam's, gated group by group and corrected by a network (see ``splatopt.meta.network``).

    It knows no horizon and has no schedule. What it leaves in the objective is the running average of its iterates;
    gradient and step are taken at the last iterate. Rows that the views did not see keep their last iterate, moments
    and latent state; their average still moves towards that iterate. No row becomes larger than ``max_growth`` times
    what it began as, and while few different views were visited the colour's higher bands take shorter steps (see
    ``splatopt.optim.visited_views``). Where the network gives a number that is not finite, that row takes Adam's step;
    when the loss stays above its lowest for a window of steps, all do from then on, and ``metrics["fallback"]`` is 1.

    Of the parts that other optimizers are composed of it shares the bound on growth alone: the network gives direction
    and length of a step in one.

    Source: after Pearl et al. 2026, "Learn2Splat: Extending the Horizon of Learned 3DGS Optimization".
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(self, objective: Objective, options: LearnedOptions, generator: torch.Generator | None = None) -> None:
        """Load the weights; see :class:`~splatopt.core.optimizer.Optimizer`.

        Raises:
            InputError: The parameters are not those of Gaussians, or the weights cannot be used.
        """
        super().__init__(objective, options, generator)
        self.weights: LearnedWeights = load_weights(options.weights)
        self._network = self.weights.network.to(next(iter(objective.parameters.values())))
        self._inner = self.remember(InnerState.begin(objective.parameters, self._network.options.latent))
        power = self.weights.rates.average_power
        self._growth = self.remember(GrowthBound(objective.parameters, options.max_growth))
        self._visited_views = self.remember(VisitedViews(options.full_color_views))
        averages = options.averaged and power
        self._average = self.remember(RunningAverage(objective.parameters, power)) if averages else None
        self._near: Tensor | None = None
        self._fallen = False
        self._settled = False
        self._watch = self.remember(LossWatch())
        self._is_new_level = False
        self._fused: FusedNetwork | None = None

    def memory_needed(self, batch: Batch) -> int:
        """Return the bytes of what the native passes keep between steps, or of what PyTorch makes in one at most."""
        parameters, shape = self.objective.parameters, self._network.options
        is_native = fits(parameters, parameters) and self.objective.backend not in _ON_A_GPU
        row_bytes = native_row_bytes(shape) if is_native else torch_row_bytes(shape, parameters)
        return row_bytes * len(parameters["means"])

    def at_last_iterate(self) -> AbstractContextManager[None]:
        """Have the last iterate change places with the average for a while."""
        return nullcontext() if self._average is None else self._average.stepping(self.objective.parameters)

    @torch.no_grad()
    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Evaluate the gradient on ``batch`` and take the network's step."""
        if self._average is None:
            return self._step(batch, progress)
        parameters = self.objective.parameters
        with self._average.stepping(parameters):
            evaluation = self._step(batch, progress)
            self._average.take_in(parameters)
        return evaluation

    def _step(self, batch: Batch, progress: Progress) -> Evaluation:
        evaluation = self.objective.gradient(batch)
        if self._is_new_level:
            self._inner.rescale_losses(evaluation.loss)
            self._watch.restart(self._inner)
            self._is_new_level = False
        self._visited_views.visit(self.objective.views(batch))
        state = self._inner
        if not len(state.age):
            return evaluation
        seen = torch.ones_like(state.age, dtype=torch.bool) if evaluation.seen is None else evaluation.seen
        near = None if self._fallen else self._neighbours(state.steps + 1)
        clock = clock_of(self._network, progress.step, progress.horizon)
        if fits(self.objective.parameters, evaluation.gradient):
            self._step_natively(evaluation, seen, near, clock)
        elif near is None:
            self._step_as_adam(evaluation, seen)
        else:
            self._step_in_torch(evaluation, seen, near, clock)
        self._growth.hold(self.objective.parameters)
        if not self._fallen:
            self._watch_loss()
        return replace(evaluation, metrics={**evaluation.metrics, "fallback": float(self._fallen)})

    def _step_natively(self, evaluation: Evaluation, seen: Tensor, near: Tensor | None, clock: Tensor | None) -> None:
        self._fused = self._fused or FusedNetwork(self._network, self.threads, self.instructions)
        parameters, rates, scale = self.objective.parameters, self._rates(), self.objective.length_scale
        self._fused.step(parameters, evaluation, seen, self._inner, near, rates, scale, clock)

    def _step_in_torch(self, evaluation: Evaluation, seen: Tensor, near: Tensor, clock: Tensor | None) -> None:
        parameters, scale, rates = self.objective.parameters, self.objective.length_scale, self._rates()
        self._inner.observe(evaluation.gradient, evaluation.loss, seen, rates)
        inputs = build_inputs(parameters, evaluation.gradient, self._inner, rates, scale, seen)
        taken = learned_step(self._network, inputs, self._inner, rates, scale, near, clock).mended()
        self._inner.latent = taken.latent
        self._move(taken.changes)

    def _step_as_adam(self, evaluation: Evaluation, seen: Tensor) -> None:
        rates = self._rates()
        self._inner.observe(evaluation.gradient, evaluation.loss, seen, rates)
        inputs = adam_inputs(self._inner, rates, seen)
        self._move(adam_changes(inputs, self._inner, rates, self.objective.length_scale))

    def _rates(self) -> InnerRates:
        """Return the Adam's rates, of the higher bands what the visited views leave of theirs."""
        rates = self.weights.rates
        return replace(rates, sh_rest=self._visited_views.color_share() * rates.sh_rest)

    def _move(self, changes: Tensors) -> None:
        for name, parameter in self.objective.parameters.items():
            parameter.add_(changes[name])

    def _neighbours(self, step: int) -> Tensor | None:
        """Return each Gaussian's nearest others for ``step``, counted from 1, searched for every so many steps.

        None where the network has no share in any Gaussian's steps any more, which is looked at as often.
        """
        due = (step - 1) % self.options.neighbour_refresh == 0
        if due:
            # Of the steps to come, the first is the youngest.
            self._settled = not bool((self.weights.rates.learned_share(self._inner.age + 1) > 0).any())
        if self._settled:
            return None
        if self._near is None or due:
            means, count = self.objective.parameters["means"], self._network.options.neighbours
            if len(means) <= count:
                self._warn_of_few(len(means), step)
                count = 0
            self._near = nearest_others(means, count, self.threads, self.instructions)
        return self._near

    def _warn_of_few(self, count: int, step: int) -> None:
        """Say once that the network goes without neighbours; a scene may also have been pruned so far."""
        if step == 1:
            self.warnings.append(f"a scene of {count} Gaussians is too small for the learned step's neighbours")

    def _watch_loss(self) -> None:
        """Give up on the network where the loss has stayed above its lowest for a window of steps."""
        window, rise = self.options.fallback_window, self.options.fallback_rise
        if self._watch.is_high_for(window, rise, self._inner):
            self._fallen = True
            self.warnings.append(
                f"the loss has stayed {self.options.fallback_rise:.0%} above its lowest for "
                f"{self.options.fallback_window} steps: from step {self._inner.steps} on the learned step is Adam's"
            )

    def follow_level(self, ratio: float) -> None:
        """Forget which loss was the lowest, as sharper photographs have a higher one; moments and ages stay.

        The running means of the loss, whose ratios the network sees, are multiplied by what the first loss at the new
        size is to the latest of them: it sees neither a rise nor a fall in that.
        """
        super().follow_level(ratio)
        self._watch.restart(self._inner)
        self._is_new_level = True

    def state(self) -> OptimizerState:
        """Return the run's memory; neighbours are kept as well, since they were found some steps ago."""
        declared = super().state()
        near = {} if self._near is None else {"near": self._near}
        own = {"fallen": int(self._fallen), "weights": self.weights.mark}
        return OptimizerState({**declared.tensors, **near}, {**declared.scalars, **own})

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit the scene or the weights."""
        missing = [name for name in ("fallen", "lowest", "above") if name not in state.scalars]
        if missing:
            raise InputError(f"this is not a state of learned: it holds no {missing[0]}; start a new run")
        # Runs of older versions do not say what they were begun with.
        if state.scalars.get("weights", self.weights.mark) != self.weights.mark:
            raise InputError(
                f"the run was begun with other weights than {self.options.weights} is now; go on with those that it "
                "was begun with, or start a new run"
            )
        super().load_state(state)
        self._fallen = bool(state.scalars["fallen"])
        self._near = self._checked_neighbours(state.tensors.get("near"))

    def _checked_neighbours(self, near: Tensor | None) -> Tensor | None:
        """Return saved neighbours, or None where they are to be searched for anew."""
        count, others = len(self._inner.age), self._network.options.neighbours
        if near is None or near.dtype != torch.int64 or near.dim() != 2 or len(near) != count:
            return None
        if near.shape[1] not in (0, others):
            return None
        if near.numel() and not 0 <= int(near.min()) <= int(near.max()) < count:
            raise InputError("the optimizer's state names neighbours that are not in its scene; start a new run")
        return near.to(self._inner.age.device, copy=True)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Gather the memory; fresh rows start anew, and neighbours are searched for again.

        Which loss was the lowest is forgotten where half of the rows are fresh, written or reset: an opacity reset
        makes it several times what it was.
        """
        super().edit_rows(edit)
        self._near, self._settled = None, False
        if len(edit) and float(_edited(edit).float().mean()) >= _EDITED_SHARE:
            self._watch.restart(self._inner)


def _edited(edit: SceneEdit) -> Tensor:
    """Return which rows are fresh, written or reset, (M,) bool."""
    edited = edit.fresh.clone()
    for written in edit.values.values():
        edited[written.rows] = True
    for reset in edit.resets.values():
        edited |= reset
    return edited


register("learned", Learned, LearnedOptions, help="a meta-trained network corrects Adam's step; knows no horizon")
