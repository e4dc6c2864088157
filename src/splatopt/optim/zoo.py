"""``zoo:NAME``: the first-order optimizers of the pytorch-optimizer package, for fields and for scenes.

``zoo:WRAPPER+NAME`` puts one into a wrapper, such as ``zoo:lookahead+adan``; see :mod:`splatopt.optim.zoo_wrappers`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch

from splatopt.core.checks import InputError, check_positive, nearest_names
from splatopt.core.objective import Batch, Evaluation, Oracle
from splatopt.core.optimizer import Entry, Progress, register_family
from splatopt.optim.bridge import Feed, TorchOptimizer
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.torch_state import COPIES
from splatopt.optim.types import Group
from splatopt.optim.zoo_wrappers import REFUSED_WRAPPERS, WRAPPERS, feed_of, wrapped_factory

_SECOND_ORDER = "it differentiates twice by its own means; take esgd, adahessian (scenes) or adahessian-e (fields)"
_MODEL = "it wants a whole model and takes over its backward pass"
_UNSAVED = "part of its state lies where no checkpoint reaches it, so a run could not be resumed"
_WRAPPER = "it is a wrapper of other optimizers"
_STUCK = "it did not lower a plain quadratic at its default settings or at rates from 1e-4 to 1e-1"

REFUSED = {
    "adahessian": _SECOND_ORDER,
    "sophiah": _SECOND_ORDER,
    "adalomo": _MODEL,
    "lomo": _MODEL,
    "adammini": _MODEL,
    "adashift": _UNSAVED,
    "conda": _UNSAVED,
    "madgrad": _UNSAVED,
    "scalableshampoo": _UNSAVED,
    "spam": _UNSAVED,
    "stablespam": _UNSAVED,
    "demo": "it is made for several machines",
    "distributedmuon": "it is made for several machines",
    "lbfgs": "it needs a full batch; for fields, lbfgs without the prefix is that",
    "magma": _WRAPPER,
    "bsam": "it wants the number of data, and closures of its own kind",
    "sara": _STUCK,
    "spectralsphere": "it takes matrices alone",
    "vsgd": "what it keeps of a new row begins at zero, and it divides by it",
}
"""What of the package is not handed out, and why; all else passes the tests in ``tests/optim/test_zoo.py``."""

_SQUARE = "it would keep a square matrix with one row and one column for every Gaussian"

REFUSED_ON_SCENES = {
    "a2grad": "it keeps no rate, and each of a scene's parameters has a rate that is set by its type",
    "lorarite": "it steps on pairs of low-rank factors, and a scene has none",
    **dict.fromkeys(("alice", "dash", "shampoo"), _SQUARE),
    "ftrl": "it makes parameters anew from sums of their gradients, and forgets where they began",
    "kate": "its first steps at the rates of 3DGS throw a scene about",
    "nero": "what it keeps depends on which parameters are zero, so a run could not be resumed",
    "dadaptlion": "the rate that it finds on a rendered scene grows without bound",
    "splus": "it divides the rate of a matrix by its sides, and a scene's matrices have a row for every Gaussian",
}
"""What is handed out for fields and not for scenes, and why."""

_ONE_RATE = ("prodigy", "dadaptadagrad", "dadaptadam", "dadaptadan", "dadaptsgd")
"""They find one rate for all parameters; a scene's are handed to them in units of the rates of 3DGS at its first step.
d then is a factor on these rates, and begins at 1: at the package's 1e-6 a scene stays where it is for long."""

SCENE_SETTINGS: dict[str, dict[str, Any]] = {
    # Gaussians are a batch, not a side of a matrix: a diagonal for them, or nothing, beside the columns' matrix.
    "kron": {"memory_save_mode": "one_diag"},
    "soap": {"max_precondition_dim": 48},
    **{member: {"d0": 1.0} for member in _ONE_RATE},
}
"""Settings that differ on scenes from the package's own, where the user gives none."""

_COPIES = {"accsgd": COPIES | {"momentum_buffer"}}

_MUONS = ("muon", "muonclip", "adamuon", "normuon", "adago")
"""They orthogonalise matrices, and take AdamW for the rest."""


@dataclass(frozen=True)
class ZooOptions:
    """Settings of an optimizer of the pytorch-optimizer package."""

    rate: float | None = None
    """Rate of every parameter that is not of a Gaussian; the package's own when None.
    Unit: per step, as the optimizer means it. Source: the optimizer's paper."""

    rate_factor: float = 1.0
    """Factor on the rates that 3DGS has for the parameters of a Gaussian. Unit: factor. Source: 3DGS, where Adam's
    is 1; optimizers whose steps are shorter or longer than Adam's want another."""

    settings: tuple[str, ...] = ()
    """Further settings of the optimizer as NAME=VALUE, such as weight_decay=0.01 or betas=[0.9,0.99].
    Unit: the optimizer's own. Source: the package's documentation."""

    def __post_init__(self) -> None:
        """Refuse what no optimizer takes."""
        if self.rate is not None:
            check_positive("rate", self.rate)
        check_positive("rate_factor", self.rate_factor)
        self.keywords()

    def keywords(self) -> Group:
        """Return ``settings`` by name."""
        found = {}
        for setting in self.settings:
            name, separator, text = setting.partition("=")
            if not separator or not name.isidentifier():
                raise InputError(f"a setting of an optimizer must be NAME=VALUE, got {setting!r}")
            try:
                value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
            except ValueError:
                value = text
            found[name] = tuple(value) if isinstance(value, list) else value
        return found


class ZooOptimizer(TorchOptimizer):
    """One optimizer of the package; subclasses name it.

    Whatever it draws comes from PyTorch's or NumPy's global generator. Both are seeded from the run's for each step,
    and while it is made from the run's seed, and put back, so that a run can be repeated and resumed.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    member: ClassVar[str]
    wrapper: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"zoo:{self.wrapper}+{self.member}" if self.wrapper else f"zoo:{self.member}"

    @property
    def _on_scene(self) -> bool:
        """Whether the parameters are those of Gaussians, which have rates by their type."""
        return set(self.objective.parameters) >= set(AdamOptions().rates(1.0, Progress(0, 1)))

    def make(self, groups: list[Group]) -> torch.optim.Optimizer:
        """Make it; raises InputError where its settings do not fit."""
        keywords = self.options.keywords()
        if self.options.rate is not None:
            keywords[self.rate_key] = self.options.rate
        if self._on_scene:
            if self.member in REFUSED_ON_SCENES:
                raise InputError(f"{self.name} is not handed out for scenes: {REFUSED_ON_SCENES[self.member]}")
            if self.rate_key in keywords and self.member not in _ONE_RATE:
                raise InputError(
                    f"the rates of {self.name} on a scene are those of 3DGS times --zoo.rate-factor; leave "
                    f"{'--zoo.rate' if self.options.rate is not None else f'the setting {self.rate_key}'} out"
                )
            keywords = SCENE_SETTINGS.get(self.member, {}) | keywords
        elif self.options.rate_factor != 1:
            raise InputError(
                f"--zoo.rate-factor is a factor on a scene's rates, and {self.name} steps none here; give --zoo.rate"
            )
        factory, known = _factory(self.member, self.wrapper)
        for name in self.options.keywords():
            # Many take whatever keywords come, and do nothing with them.
            if name not in known:
                raise InputError(f"{self.name} has no setting {name!r}; {nearest_names(name, known)}")
        try:
            # The package warns of what it recommends, not of what is wrong.
            with warnings.catch_warnings(), self._own_randomness(drawn=False):
                warnings.simplefilter("ignore")
                made = factory(groups, **keywords)
        except (TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"{self.name} cannot be made with these settings ({error}); change them with --zoo.settings"
            ) from error
        # Some take a rate that they do not use.
        if self.options.rate is not None and any(self.rate_key not in group for group in made.param_groups):
            raise InputError(f"{self.name} keeps no rate; leave --zoo.rate out, or take another optimizer")
        return made

    def rates(self, progress: Progress) -> dict[str, float]:
        """Return the rates of 3DGS for the parameters of a Gaussian, times ``rate_factor``; else nothing."""
        if not self._on_scene or self.member in _ONE_RATE:
            return {}
        rates = AdamOptions().rates(self.objective.length_scale, progress)
        return {name: self.options.rate_factor * rate for name, rate in rates.items()}

    @property
    def units(self) -> dict[str, float]:
        """What a step of one is for each parameter of a scene, where the optimizer finds one rate for all of them."""
        if not self._on_scene or self.member not in _ONE_RATE:
            return {}
        rates = AdamOptions().rates(self.objective.length_scale, Progress(0, 1))
        return {name: self.options.rate_factor * rate for name, rate in rates.items()}

    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Let the optimizer take one step on ``batch``."""
        with self._own_randomness(drawn=True):
            return super().step(batch, progress)

    @contextmanager
    def _own_randomness(self, *, drawn: bool) -> Iterator[None]:
        """Seed the global generators of PyTorch and NumPy, and put them back.

        Args:
            drawn: Whether with a number drawn from the run's generator, or with that generator's own seed.
        """
        if self.generator is None:
            yield
            return
        seed = int(torch.randint(2**62, (), generator=self.generator)) if drawn else self.generator.initial_seed()
        kept = np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            try:
                yield
            finally:
                np.random.set_state(kept)


def zoo_names() -> tuple[str, ...]:
    """Names of what the package offers and we hand out, sorted.

    Raises:
        InputError: The package is not installed.
    """
    return tuple(sorted({*_package().get_supported_optimizers(), "sam"} - REFUSED.keys()))


def find_zoo(name: str) -> Entry:
    """Return the entry of ``zoo:name``, where name may be WRAPPER+NAME.

    Raises:
        InputError: The package is not installed, has no such optimizer or wrapper, or it is refused.
    """
    before, plus, member = name.lower().rpartition("+")
    if not plus and member == "sam":
        before, member = "sam", "adamw"
    wrapper = _wrapper(before, name) if before or plus else None
    if member in REFUSED:
        raise InputError(f"zoo:{member} is not handed out: {REFUSED[member]}")
    known = zoo_names()
    if plus and member == "sam":
        raise InputError("zoo:sam is a wrapper itself; put an optimizer after the plus, such as adamw")
    if member not in known:
        raise InputError(f"the pytorch-optimizer package has no {member!r}; {nearest_names(member, known)}")
    if wrapper and member == "alig":
        raise InputError("zoo:alig takes the loss itself, and no wrapper hands it on; take alig without one")
    feed = feed_of(wrapper) if wrapper else Feed.CLOSURE if member == "alig" else Feed.GRADIENTS
    columns = {
        "member": member,
        "wrapper": wrapper,
        "feed": feed,
        "rate_key": "max_lr" if member == "alig" else "lr",
        "copies": _COPIES.get(member, COPIES),
    }
    about = f"{member} of the pytorch-optimizer package" + (f"; {WRAPPERS[wrapper][1]}" if wrapper else "")
    return Entry(type(f"Zoo_{wrapper or ''}_{member}", (ZooOptimizer,), columns), ZooOptions, about)


def _wrapper(name: str, whole: str) -> str:
    """Return ``name`` where it is that of a wrapper which is handed out; raises InputError otherwise."""
    if name in REFUSED_WRAPPERS:
        raise InputError(f"zoo:{whole} is not handed out: {name}: {REFUSED_WRAPPERS[name]}")
    if name not in WRAPPERS:
        raise InputError(f"zoo has no wrapper {name!r}; {nearest_names(name, WRAPPERS)}")
    return name


def _package() -> ModuleType:
    try:
        return importlib.import_module("pytorch_optimizer")
    except ImportError as error:
        raise InputError(
            "zoo:NAME needs the pytorch-optimizer package, which is not installed; pip install 'splatopt[zoo]'"
        ) from error


def _factory(member: str, wrapper: str | None) -> tuple[Callable[..., Any], list[str]]:
    """What makes the optimizer from groups and keywords, and the keywords that it knows."""
    package = _package()
    kind: Any = torch.optim.AdamW if wrapper == "sam" and member == "adamw" else package.load_optimizer(member)
    known = [name for name in inspect.signature(kind).parameters if name not in ("self", "params", "kwargs")]

    def made(groups: list[Group], **keywords: Any) -> torch.optim.Optimizer:
        return kind(_split_matrices(groups) if member in _MUONS else groups, **keywords)

    return (made, known) if wrapper is None else wrapped_factory(package, wrapper, made, known)


def _split_matrices(groups: list[Group]) -> list[Group]:
    """Groups of matrices alone, and of all else, marked as Muon wants them."""
    split = []
    for group in groups:
        for matrices in (True, False):
            params = [param for param in group["params"] if (param.dim() >= 2) == matrices]
            if params:
                split.append({**group, "params": params, "use_muon": matrices})
    return split


register_family("zoo", find_zoo)
