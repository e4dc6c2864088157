"""The optimizers of neural fields by name, with their options; each is a ``torch.optim`` optimizer, bridged.

They have a table of their own, since a name means other rates here than for Gaussians.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_max_count, check_positive, nearest_names
from splatopt.core.graph import GraphObjective
from splatopt.core.objective import Batch, Objective, Oracle
from splatopt.core.optimizer import OPTIMIZERS, Entry, Optimizer
from splatopt.core.plugins import Origin
from splatopt.optim.bridge import Feed, TorchOptimizer, bridge
from splatopt.optim.curvature_diagonal import ESGD, AdaHessianE, AdaHessianJ, CurvatureDiagonal, ESGDMax
from splatopt.optim.kfac import KFAC
from splatopt.optim.shampoo import Shampoo
from splatopt.optim.torch_state import misfit, misfit_of_history
from splatopt.optim.types import Group
from splatopt.optim.zoo import find_zoo

_BOTH = frozenset({Oracle.GRADIENT, Oracle.HVP})


class _Checked:
    """Checks an options' dataclass by its fields' names: decays are fractions, counts whole, the rest positive."""

    _decays = ("beta1", "beta2", "momentum", "decay", "rate_decay", "floor")
    _counts = ("warmup", "interval", "first_probes", "history")

    def __post_init__(self) -> None:
        """Refuse what cannot descend."""
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is None:
                continue
            if item.name in self._decays:
                check_fraction(item.name, value)
            elif item.name in self._counts:
                if value < 1:
                    raise InputError(f"{item.name} must be at least 1, got {value}")
                check_max_count(item.name, value)
            else:
                check_positive(item.name, value)


@dataclass(frozen=True)
class SgdOptions(_Checked):
    """Stochastic gradient descent with momentum."""

    rate: float | None = None
    """Learning rate; the field's own when None. Unit: per step. Source: ours, not swept."""

    momentum: float = 0.9
    """Decay of the sum of gradients. Unit: fraction. Source: Sutskever et al. 2013."""


@dataclass(frozen=True)
class FieldAdamOptions(_Checked):
    """Adam."""

    rate: float | None = None
    """Learning rate; the field's own when None. Unit: per step. Source: Chng et al. 2025."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Kingma and Ba 2015."""

    beta2: float = 0.999
    """Decay of the mean of squared gradients. Unit: fraction. Source: Kingma and Ba 2015."""

    epsilon: float = 1e-8
    """Added to the root of the mean square. Unit: of the gradient. Source: Kingma and Ba 2015."""


@dataclass(frozen=True)
class EsgdOptions(_Checked):
    """Equilibrated SGD."""

    rate: float | None = None
    """Learning rate; the field's own when None. Unit: per step. Source: Chng et al. 2025."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Chng et al. 2025."""

    beta2: float = 0.999
    """Decay of the mean of (Hv)², per refresh. Unit: fraction. Source: Chng et al. 2025."""

    damping: float = 1e-4
    """Added to the root of the mean. Unit: of the Hessian. Source: Chng et al. 2025."""

    warmup: int = 50
    """First steps that all refresh. Unit: steps. Source: Chng et al. 2025."""

    interval: int = 100
    """Steps between refreshes after that. Unit: steps. Source: Chng et al. 2025."""

    first_probes: int = 10
    """Probes of the first refresh. Unit: probes. Source: measured, docs/results/fields.md: with one, sine starts badly
    for some seeds."""

    floor: float | None = None
    """Lower bound of the diagonal, in parts of its tensor's root mean square; when None, 0.1 for relu and relu-pe,
    whose Hessian has rows that are zero by chance, and 0 for the others. Unit: fraction. Source: measured,
    docs/fields.md."""


@dataclass(frozen=True)
class EsgdMaxOptions(EsgdOptions):
    """ESGD whose diagonal is a decaying maximum, with a rate that warms up."""

    rate_decay: float = 0.99
    """The rate of step t is multiplied by 1 minus this to the power t. Unit: fraction. Source: Chng et al. 2025."""


@dataclass(frozen=True)
class AdaHessianOptions(_Checked):
    """AdaHessian: a probe in every step."""

    rate: float | None = None
    """Learning rate; the field's own when None. Unit: per step. Source: Chng et al. 2025."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Yao et al. 2021."""

    beta2: float = 0.999
    """Decay of the mean of probes. Unit: fraction. Source: Yao et al. 2021."""

    damping: float = 1e-4
    """Added to the diagonal's modulus. Unit: of the Hessian. Source: Chng et al. 2025."""

    first_probes: int = 10
    """Probes of the first step. Unit: probes. Source: as of ESGD."""

    floor: float | None = None
    """Lower bound of the diagonal, in parts of its tensor's root mean square; when None, 0.1 for adahessian-e on relu
    and relu-pe, and 0 otherwise. Unit: fraction. Source: measured, docs/results/fields.md."""


@dataclass(frozen=True)
class ShampooOptions(_Checked):
    """Shampoo, grafted to SGD."""

    rate: float | None = None
    """Learning rate, that of SGD; the field's own when None. Unit: per step. Source: ours, not swept."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Anil et al. 2020."""

    beta2: float = 0.99
    """Decay of the factors. Unit: fraction. Source: Anil et al. 2020."""

    epsilon: float = 1e-4
    """Damping of a factor. Unit: share of the mean of its diagonal. Source: Anil et al. 2020."""

    interval: int = 20
    """Steps between new roots of the factors. Unit: steps. Source: Anil et al. 2020."""


@dataclass(frozen=True)
class KfacOptions(_Checked):
    """K-FAC, damped."""

    rate: float | None = None
    """Learning rate; the field's own when None. Unit: per step. Source: ours, not swept."""

    momentum: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Martens and Grosse 2015."""

    decay: float = 0.95
    """Decay of the factors, per refresh. Unit: fraction. Source: Martens and Grosse 2015."""

    damping: float = 1.0
    """λ. Unit: of the Gauss-Newton matrix. Source: measured, docs/results/fields.md; Martens and Grosse adapt it."""

    interval: int = 10
    """Steps between refreshes of factors and inverses. Unit: steps. Source: Martens and Grosse 2015."""

    clip: float = 1e-2
    """Largest squared length of a step in the factors' metric. Unit: of the loss. Source: Ba et al. 2017."""


@dataclass(frozen=True)
class LbfgsOptions(_Checked):
    """L-BFGS with a strong Wolfe line search, on the full batch."""

    rate: float | None = None
    """First length that the line search tries; 1 when None. Unit: factor. Source: Nocedal and Wright 2006."""

    history: int = 20
    """Pairs of steps and gradients that make up the inverse Hessian. Unit: pairs. Source: Nocedal and Wright 2006."""


def _curvature(optimizer: type[CurvatureDiagonal], *names: str) -> type[TorchOptimizer]:
    """Bridge one of the Hessian diagonals, passing on the options ``names``."""

    def make(groups: list[Group], options: Any, generator: torch.Generator | None) -> CurvatureDiagonal:
        settings = {name: getattr(options, name) for name in ("damping", "first_probes", "floor", *names)}
        return optimizer(groups, options.rate, betas=(options.beta1, options.beta2), generator=generator, **settings)

    return bridge(make, Feed.GRAPH, _BOTH)


class FieldKfac(TorchOptimizer):
    """K-FAC on an objective that is a graph over a module: it must see the module's layers."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    feed: ClassVar[Feed] = Feed.GRAPH

    def make(self, groups: list[Group]) -> KFAC:
        """Make it; raises InputError where the objective has no module of linear layers."""
        if not isinstance(self.objective, GraphObjective):
            raise InputError(f"kfac needs the layers of a network, which {type(self.objective).__name__} has none of")
        options = self.options
        return KFAC(
            self.objective.module,
            options.rate,
            momentum=options.momentum,
            decay=options.decay,
            damping=options.damping,
            interval=options.interval,
            clip=options.clip,
            generator=self.generator,
        )

    def _first_state(self) -> dict[str, Group]:
        """What is kept of each layer, by its weight; it cannot be seen on copies, which are of no network."""
        found: dict[str, Group] = {}
        for name, leaf in self._leaves.items():
            if leaf.dim() == 2 and name in self._leaves:
                rows, columns = leaf.shape[0], leaf.shape[1] + 1
                found[name] = {"mean": leaf.new_zeros(rows, columns)}
                found[name] |= {key: leaf.new_zeros(columns, columns) for key in ("inputs", "inputs_inverse")}
                found[name] |= {key: leaf.new_zeros(rows, rows) for key in ("outputs", "outputs_inverse")}
        return found

    def _check_kept(self, state: Mapping[str, Group]) -> None:
        """Raise InputError where what is kept does not fit the layers, or a factor is no curvature."""
        super()._check_kept(state)
        for name, kept in state.items():
            for key in ("inputs", "outputs"):
                if key in kept:
                    values = torch.linalg.eigvalsh(kept[key].double())
                    if float(values[0]) < -1e-3 * float(values.abs().max()):
                        raise misfit(key, name)

    def graph(self, objective: GraphObjective, batch: Batch) -> Tensor:
        """Return the residual: it tells what curvature is Gauss-Newton's."""
        return objective.residual(batch)


def _sgd(groups: list[Group], options: SgdOptions, _: torch.Generator | None) -> torch.optim.SGD:
    return torch.optim.SGD(groups, lr=_rate(options), momentum=options.momentum)


def _adam(groups: list[Group], options: FieldAdamOptions, _: torch.Generator | None) -> torch.optim.Adam:
    betas = (options.beta1, options.beta2)
    return torch.optim.Adam(groups, lr=_rate(options), betas=betas, eps=options.epsilon, fused=True)


def _shampoo(groups: list[Group], options: ShampooOptions, _: torch.Generator | None) -> Shampoo:
    betas = (options.beta1, options.beta2)
    return Shampoo(groups, _rate(options), betas=betas, epsilon=options.epsilon, interval=options.interval)


class FieldLbfgs(TorchOptimizer):
    """L-BFGS; all that it keeps is of all parameters, in a row, and kept with the first."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    feed: ClassVar[Feed] = Feed.CLOSURE

    def make(self, groups: list[Group]) -> torch.optim.LBFGS:
        """Make it, with one iteration a step."""
        return torch.optim.LBFGS(
            groups,
            lr=_rate(self.options),
            max_iter=1,
            history_size=self.options.history,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

    def _check_kept(self, state: Mapping[str, Group]) -> None:
        """Raise InputError where the history does not fit the parameters."""
        size = sum(leaf.numel() for leaf in self._leaves.values())
        for name, kept in state.items():
            wrong = misfit_of_history(kept, size, self.options.history)
            if wrong:
                raise misfit(wrong, name)


def _rate(options: Any) -> float:
    if options.rate is not None:
        return options.rate
    raise InputError("the rate of this optimizer must be given, or filled in by field_options()")


@dataclass(frozen=True)
class FieldEntry:
    """One optimizer of fields.

    Attributes:
        entry: Class, options and help, as splatopt's registry has them.
        rate: Rate for the fields with smooth activations; None where the optimizer knows its own.
        relu_rate: Rate for ReLU, bare or with positional encoding.
        full_batch: Whether it needs one batch of everything.
        relu_floor: Lower bound of its diagonal for ReLU.
    """

    entry: Entry
    rate: float | None
    relu_rate: float | None
    full_batch: bool = False
    relu_floor: float = 0.0


FIELD_OPTIMIZERS: dict[str, FieldEntry] = {
    "sgd": FieldEntry(Entry(bridge(_sgd), SgdOptions, "SGD with momentum"), 1e-3, 1e-1),
    "adam": FieldEntry(Entry(bridge(_adam), FieldAdamOptions, "Adam"), 1e-4, 1e-3),
    "esgd": FieldEntry(
        Entry(_curvature(ESGD, "warmup", "interval"), EsgdOptions, "equilibrated SGD"),
        rate=0.15,
        relu_rate=0.1,
        relu_floor=0.1,
    ),
    "esgd-max": FieldEntry(
        Entry(_curvature(ESGDMax, "warmup", "interval", "rate_decay"), EsgdMaxOptions, "ESGD with a decaying maximum"),
        rate=0.15,
        relu_rate=0.1,
        relu_floor=0.1,
    ),
    "adahessian-e": FieldEntry(
        Entry(_curvature(AdaHessianE), AdaHessianOptions, "AdaHessian as its code has it: equilibrated"),
        rate=0.15,
        relu_rate=0.1,
        relu_floor=0.1,
    ),
    "adahessian-j": FieldEntry(
        Entry(_curvature(AdaHessianJ), AdaHessianOptions, "AdaHessian as it is described: Jacobi's diagonal"),
        1e-3,
        1e-3,
    ),
    "shampoo": FieldEntry(Entry(bridge(_shampoo), ShampooOptions, "Shampoo, grafted to SGD"), 1e-2, 1e-1),
    "kfac": FieldEntry(Entry(FieldKfac, KfacOptions, "K-FAC"), 0.1, 0.1),
    "lbfgs": FieldEntry(Entry(FieldLbfgs, LbfgsOptions, "L-BFGS, on the full batch"), 1.0, 1.0, full_batch=True),
}
"""By name; ``zoo:NAME`` beside them, see :func:`find_field_optimizer`."""


def find_field_optimizer(name: str) -> FieldEntry:
    """Return the entry of ``name``; raises InputError with the nearest names if there is none.

    Optimizers that others registered are found as well: whether an objective gives what they need, they ask it.
    """
    if name.startswith("zoo:"):
        return FieldEntry(find_zoo(name.removeprefix("zoo:")), rate=None, relu_rate=None)
    if name in FIELD_OPTIMIZERS:
        if name in OPTIMIZERS.names(Origin.GIVEN, Origin.INSTALLED):
            raise InputError(
                f"two optimizers of fields are named {name!r}: splatopt's own, and the one of "
                f"{OPTIMIZERS.place(name)}; give that another name"
            )
        return FIELD_OPTIMIZERS[name]
    others = (*OPTIMIZERS.names(Origin.GIVEN, Origin.INSTALLED), *OPTIMIZERS.offered())
    if name in others:
        return FieldEntry(OPTIMIZERS.find(name), rate=None, relu_rate=None)
    if name in OPTIMIZERS.names():
        hint = f"{name!r} is an optimizer of scenes, whose options are of Gaussians; of fields there are "
        raise InputError(f"{hint}{', '.join([*FIELD_OPTIMIZERS, 'zoo:NAME', *others])}")
    hint = nearest_names(name, [*FIELD_OPTIMIZERS, "zoo:NAME", *others])
    raise InputError(f"no optimizer of fields is named {name!r}; {hint}")


def field_options(name: str, field: str, options: Any = None) -> Any:
    """Return ``options`` with rate and floor filled in that suit the field; the defaults where they are None.

    Args:
        name: The optimizer.
        field: Name of the field.
        options: The optimizer's own dataclass.

    Raises:
        InputError: There is no such optimizer, or the options are another's.
    """
    found = find_field_optimizer(name)
    kind: Any = found.entry.options
    piecewise, chosen = field.startswith("relu"), kind() if options is None else options
    if type(chosen) is not kind:  # another optimizer's may be a subclass
        raise InputError(f"the options of optimizer {name!r} must be a {kind.__name__}, got a {type(chosen).__name__}")
    if getattr(chosen, "rate", 0.0) is None and found.rate is not None:
        chosen = replace(chosen, rate=found.relu_rate if piecewise else found.rate)
    if getattr(chosen, "floor", 0.0) is None:
        chosen = replace(chosen, floor=found.relu_floor if piecewise else 0.0)
    return chosen


def with_rate_of(options: Any, suited: Any) -> Any:
    """Return ``options`` with the rate of ``suited`` where they name none; these themselves where none were given."""
    if suited is not None and options in (None, type(suited)()):
        return suited
    if type(options) is type(suited) and getattr(options, "rate", 0.0) is None:
        return replace(options, rate=suited.rate)
    return options


def make_field_optimizer(
    name: str, objective: Objective, field: str, options: Any = None, generator: torch.Generator | None = None
) -> Optimizer:
    """Return the optimizer ``name`` bound to ``objective``.

    Args:
        name: One of FIELD_OPTIMIZERS, or ``zoo:NAME``.
        objective: A task of a field.
        field: Name of the field, for the rate.
        options: The optimizer's own dataclass; its defaults when None.
        generator: The run's source of randomness.
    """
    entry = find_field_optimizer(name).entry
    return entry.optimizer(objective, field_options(name, field, options), generator)
