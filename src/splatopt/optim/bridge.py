"""Any ``torch.optim`` optimizer as an optimizer of splatopt, on any objective.

One line makes one known to the command line, suites and tests::

    register("rmsprop", bridge(lambda params, options, generator: RMSprop(params, lr=options.rate)), Rate)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splatopt.core.checks import InputError
from splatopt.core.graph import GraphObjective
from splatopt.core.objective import Batch, Evaluation, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.optim.flat_state import flatten, unflatten
from splatopt.optim.torch_state import COPIES, check_like, check_state, edited_state, first_state
from splatopt.optim.types import Group

Factory = Callable[[list[Group], Any, torch.Generator | None], torch.optim.Optimizer]
"""Makes an optimizer from parameter groups, options and the run's generator."""


class Feed(Enum):
    """How an optimizer is told of gradients."""

    GRADIENTS = "they are set, then step() is called"
    CLOSURE = "step(closure) is called, and the closure sets them and returns the loss"
    GRADIENTS_AND_CLOSURE = "they are set, then step(closure) is called, as SAM wants it"
    GRAPH = "step(closure) is called, and the closure returns a graph that can be differentiated twice"


class TorchOptimizer(Optimizer):
    """A ``torch.optim`` optimizer that asks an objective for its derivatives.

    It is not composed of a direction, a bound and an acceptance: other people's optimizers, and those of fields, are
    bridged as they come, with all of these in one step of their own.

    Its state is made at its first step, so nobody knows before how large that is: whoever asks lets it take a few
    steps first, see :mod:`splatopt.optim.dry_run`.

    Subclasses say how it is made and how it is fed. With ``Feed.GRAPH`` it may differentiate the loss twice whatever
    the objective is: of one that is no graph, the second derivative is its Hessian product.
    """

    feed: ClassVar[Feed] = Feed.GRADIENTS

    rate_key: ClassVar[str] = "lr"
    """What its groups call the rate, which is set by that name for each step."""

    copies: ClassVar[frozenset[str]] = COPIES
    """What of its state is of the parameter's own kind, so that a new row's begins at the row's value, not at zero."""

    def __init__(self, objective: Objective, options: Any, generator: torch.Generator | None = None) -> None:
        """Make the optimizer; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._bind()

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abstractmethod
    def make(self, groups: list[Group]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups."""

    def rates(self, progress: Progress) -> Mapping[str, float]:
        """Return the rates of the step at hand by parameter's name; empty where the optimizer's own are kept.

        Where it returns any, each parameter has a group of its own.
        """
        return {}

    @property
    def units(self) -> Mapping[str, float]:
        """The unit u of each parameter, of which the optimizer sees θ/u and u·∂L/∂θ; empty where it sees θ itself."""
        return {}

    def position_rate(self, progress: Progress) -> float | None:
        """Return the means' rate: the one that is set for the step, or the one that the optimizer keeps for them.

        That is in world units, its own factor d on all rates (D-adaptation's, Prodigy's) included.
        """
        rates = self.rates(progress)
        if "means" in rates:
            return rates["means"]
        groups = self.torch.param_groups
        leaf = self._leaves.get("means")
        kept = [group.get(self.rate_key) for group in groups if any(one is leaf for one in group["params"])]
        if not kept or not isinstance(kept[0], int | float):
            return None
        found = next(group.get("d", 1.0) for group in groups if any(one is leaf for one in group["params"]))
        return float(kept[0]) * float(found) * self.units.get("means", 1.0)

    def graph(self, objective: GraphObjective, batch: Batch) -> Tensor:
        """Return what an optimizer that differentiates by itself is given: the loss, unless it asks for more."""
        return objective.loss(batch)

    def _bind(self) -> None:
        """Point a new optimizer at the objective's parameters."""
        self._leaves = self._find_leaves()
        self.torch, self._order = self._optimizer_of(self._leaves)

    def _optimizer_of(self, leaves: Tensors) -> tuple[torch.optim.Optimizer, list[str]]:
        """Return an optimizer of ``leaves``, and their names in the order of its groups."""
        names = list(leaves)
        parts = [[name] for name in names] if self.rates(Progress(0, 1)) else [names]
        made = self.make([{"params": [leaves[name] for name in part]} for part in parts])
        for group in made.param_groups:
            if group.get("train_mode"):  # between steps it rests at what is scored and saved, see `_turn`
                group["train_mode"] = False
        if len(parts) > 1 and any(self.rate_key not in group for group in made.param_groups):
            raise InputError(
                f"{self.name} keeps no rate under the name {self.rate_key}, and each of a scene's parameters has a "
                "rate that is set by that name; take another optimizer"
            )
        # An optimizer may have regrouped them, and its state counts them in the order of its groups.
        by_identity = {id(leaf): name for name, leaf in leaves.items()}
        return made, [by_identity[id(leaf)] for group in made.param_groups for leaf in group["params"]]

    def _find_leaves(self) -> dict[str, Tensor]:
        """The parameters as an optimizer wants them: leaves with a place for a gradient, in the same memory."""
        if isinstance(self.objective, GraphObjective):
            return dict(self.objective.leaves)
        values = {name: value.detach() for name, value in self.objective.parameters.items()}
        return {
            name: nn.Parameter(value / u if (u := self.units.get(name)) else value) for name, value in values.items()
        }

    # ------------------------------------------------------------------ step

    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Let the optimizer take one step on ``batch``."""
        self._follow_parameters()
        self._turn("train")
        evaluation = self._step(batch, progress)
        self._turn("eval")
        for name, unit in self.units.items():
            self.objective.parameters[name].copy_(self._leaves[name].detach() * unit)
        # A checkpoint keeps no strides, and products of matrices that lie otherwise differ in their last bits.
        for leaf, state in self.torch.state.items():
            _make_contiguous(state)
            self.torch.state[leaf] = state
        return evaluation

    def _turn(self, mode: str) -> None:
        """Bring the parameters from those of the steps to those that are wanted, or back, where these differ.

        Schedule-free optimizers step from one place and average in another; scored and saved is the average.
        """
        turn = getattr(self.torch, mode, None)
        if callable(turn):
            turn()

    def _follow_parameters(self) -> None:
        """Point the leaves at the parameters' memory of now: an average keeps two versions, which change places."""
        if not isinstance(self.objective, GraphObjective):
            units = self.units
            for name, value in self.objective.parameters.items():
                self._leaves[name].data = value / units[name] if units else value.detach()

    def _step(self, batch: Batch, progress: Progress) -> Evaluation:
        self._set_rates(progress)
        if self.feed is Feed.GRAPH:
            return self._differentiating_step(batch)
        closure = _GradientClosure(self.objective, batch, self._leaves, self.units)
        if self.feed is not Feed.CLOSURE:
            closure()
        if self.feed is Feed.GRADIENTS:
            self.torch.step()
        else:
            self._step_with(closure)
        assert closure.first is not None
        return closure.first

    def _differentiating_step(self, batch: Batch) -> Evaluation:
        """Let an optimizer that differentiates by itself take one step."""
        if isinstance(self.objective, GraphObjective):
            objective = self.objective
            loss = float(self._step_with(lambda: self.graph(objective, batch)))
            return objective.evaluation(loss, [_gradient(leaf) for leaf in self._leaves.values()])
        graph, evaluation = objective_loss(self.objective, batch, self._leaves)
        self._step_with(lambda: graph)
        return evaluation

    def _step_with(self, closure: Callable[[], Tensor]) -> Any:
        # torch's own signature wants a closure that returns a float.
        step: Callable[[Callable[[], Tensor]], Any] = self.torch.step  # type: ignore[assignment]
        return step(closure)

    def _set_rates(self, progress: Progress) -> None:
        rates = self.rates(progress)
        if rates:
            for name, group in zip(self._order, self.torch.param_groups, strict=True):
                group[self.rate_key] = rates.get(name, group[self.rate_key])

    # ------------------------------------------------------------------ state

    def state(self) -> OptimizerState:
        """Return all that the optimizer keeps, by the parameters' names, with the parameters' shapes."""
        saved = self.torch.state_dict()
        by_name = {name: kept for index, name in enumerate(self._order) if (kept := saved["state"].get(index))}
        groups = [_numbers(group) for group in saved["param_groups"]]
        shapes = {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}
        return OptimizerState(*flatten({"state": by_name, "groups": groups, "shapes": shapes, "rest": _rest(saved)}))

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit the parameters."""
        found = unflatten({name: value.clone() for name, value in state.tensors.items()}, state.scalars)
        check_state(found, self.torch.state_dict()["param_groups"], self._leaves)
        shapes = {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}
        if found["shapes"] != shapes:
            raise InputError(
                f"the optimizer's state belongs to parameters of the shapes {found['shapes']}, but they are {shapes}; "
                f"resume the run that wrote it, or start a new one"
            )
        if found["state"]:
            self._check_kept(found["state"])
        groups = [
            {**mine, **given}
            for mine, given in zip(self.torch.state_dict()["param_groups"], found["groups"], strict=True)
        ]
        numbers = {name: index for index, name in enumerate(self._order)}
        by_number = {numbers[name]: entry for name, entry in found["state"].items()}
        self.torch.load_state_dict({"state": by_number, "param_groups": groups, **found.get("rest", {})})

    def _check_kept(self, state: Mapping[str, Group]) -> None:
        """Raise InputError where what is kept of the parameters does not fit them."""
        check_like(state, self._first_state())

    def _first_state(self) -> dict[str, Group]:
        """What is kept of each parameter after one step, seen on copies; what that draws is put back."""
        kept = self.generator.get_state() if self.generator is not None else None
        leaves = {name: nn.Parameter(leaf.detach().clone()) for name, leaf in self._leaves.items()}
        made, order = self._optimizer_of(leaves)
        found = first_state(made, leaves, order)
        if self.generator is not None and kept is not None:
            self.generator.set_state(kept)
        return found

    def edit_rows(self, edit: SceneEdit) -> None:
        """Gather what is kept per row; the state of a parameter that is kept otherwise starts anew."""
        old = {name: (leaf.shape, self.torch.state.get(leaf, {})) for name, leaf in self._leaves.items()}
        groups, before = self.torch.param_groups, self.torch.state_dict()
        self._bind()
        for mine, theirs in zip(self.torch.param_groups, groups, strict=True):
            mine |= {key: value for key, value in theirs.items() if key != "params"}
        for name, leaf in self._leaves.items():
            edited = edited_state(name, *old[name], edit, leaf, self.copies)
            if edited:
                self.torch.state[leaf] = edited
        rest = _rest(before)
        if rest:
            self.torch.load_state_dict({**self.torch.state_dict(), **rest})


def bridge(
    factory: Factory, feed: Feed = Feed.GRADIENTS, needs: frozenset[Oracle] = frozenset({Oracle.GRADIENT})
) -> type[TorchOptimizer]:
    """Return the class of splatopt optimizers that ``factory`` makes, to be registered or used as it is.

    Args:
        factory: From parameter groups, options and the run's generator to a ``torch.optim`` optimizer.
        feed: How it is told of gradients; ``Feed.GRAPH`` for ``ESGD`` and its like.
        needs: What it asks of the objective; HVP beside the gradient with ``Feed.GRAPH``.
    """
    how, what = feed, needs

    class Bridged(TorchOptimizer):
        needs = what
        feed = how

        def make(self, groups: list[Group]) -> torch.optim.Optimizer:
            return factory(groups, self.options, self.generator)

    return Bridged


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


class _GradientClosure:
    """Sets the gradients and returns the loss; remembers the evaluation of its first call."""

    def __init__(self, objective: Objective, batch: Batch, leaves: Tensors, units: Mapping[str, float]) -> None:
        self.objective, self.batch, self.leaves, self.units = objective, batch, leaves, units
        self.first: Evaluation | None = None

    def __call__(self) -> Tensor:
        if self.first is not None:
            # The buffers of the first evaluation are about to be used again.
            kept = {name: part.clone() for name, part in self.first.gradient.items()}
            self.first = replace(self.first, gradient=kept)
        evaluation = self.objective.gradient(self.batch)
        for name, leaf in self.leaves.items():
            gradient = evaluation.gradient[name]
            leaf.grad = self.units[name] * gradient if self.units else gradient
        self.first = self.first or evaluation
        return torch.tensor(evaluation.loss, dtype=torch.float64)


def _make_contiguous(kept: Any) -> None:
    """Lay all tensors in a dictionary or list out row by row."""
    for key, value in kept.items() if isinstance(kept, dict) else enumerate(kept):
        if isinstance(value, Tensor) and not value.is_contiguous():
            kept[key] = value.contiguous()
        elif isinstance(value, dict | list):
            _make_contiguous(value)


def _rest(saved: Mapping[str, object]) -> Group:
    """What an optimizer saves beside its parameters' states and groups."""
    return {key: value for key, value in saved.items() if key not in ("state", "param_groups")}


def _numbers(group: Mapping[str, object]) -> Group:
    """What a group of parameters keeps beside them, as far as it is numbers: names and functions do not change."""
    plain = (bool, int, float, Tensor, type(None), tuple)
    return {key: value for key, value in group.items() if key != "params" and isinstance(value, plain)}


# ---------------------------------------------------------------------- any objective as a graph


def objective_loss(objective: Objective, batch: Batch, leaves: Tensors) -> tuple[Tensor, Evaluation]:
    """Return the loss of ``objective`` with a graph to ``leaves`` that can be differentiated twice.

    The first derivative is the objective's gradient, the second its Hessian product: exact where it has one, else
    a central difference of gradients.

    Args:
        objective: Any.
        batch: Where.
        leaves: Its parameters, as tensors that require gradients and share their memory.
    """
    names = list(leaves)
    evaluation = objective.gradient(batch)
    evaluation = replace(evaluation, gradient={name: evaluation.gradient[name].clone() for name in names})
    method = ExactHessian() if Oracle.HVP in objective.oracles else CentralDifference()

    def product(tangents: Sequence[Tensor]) -> list[Tensor]:
        found = objective.hvp(batch, dict(zip(names, tangents, strict=True)), method)
        return [found[name].clone() for name in names]

    gradients = [evaluation.gradient[name] for name in names]
    return _Loss.apply(evaluation.loss, gradients, product, *leaves.values()), evaluation


class _Loss(torch.autograd.Function):
    """A number whose derivative is known, and whose second derivative is asked for when it is needed."""

    @staticmethod
    def forward(ctx: Any, loss: float, gradients: Sequence[Tensor], product: Any, *leaves: Tensor) -> Tensor:
        ctx.gradients, ctx.product = gradients, product
        # Not saved for backward: a central difference moves the leaves and puts them back in between.
        ctx.leaves = leaves
        return leaves[0].new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        parts = _Gradient.apply(ctx.gradients, ctx.product, *ctx.leaves)
        return (None, None, None, *(weight * part for part in parts))


class _Gradient(torch.autograd.Function):
    """The gradient, whose own derivative along v is the Hessian product."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], product: Any, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.product = product
        return tuple(gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.product(tangents))
