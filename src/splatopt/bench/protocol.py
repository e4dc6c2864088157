"""Protocols: the rules that make cells comparable, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from splatopt.bench.records import ProtocolRecord
from splatopt.core.checks import InputError, nearest_names, quoted
from splatopt.train.sampler import ViewChoice

POINTS = (0, 1, 5, 10, 50, 100, 200, 300, 400, 500, 1000, 2000, 7000, 30000)
"""Steps after which every cell is scored, whatever its length. Unit: steps."""

SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""Times at which every cell is scored. Unit: seconds of training."""

BUDGET_STEPS = 4000
"""Adam steps whose seconds are everyone's time in ``fixed-time``. Unit: steps."""


@dataclass(frozen=True)
class Protocol:
    """One set of rules.

    Attributes:
        name: What suites and results call it.
        rule: The rules in a sentence.
        fixed: Settings that it fixes.
        usual: Settings that it begins from and a suite may change.
        inputs: Numbers of input views that a suite goes through, in ``sparse``; else empty. Unit: views.
        plans: Whether cells plan themselves to end after their minutes, by a recipe.
        budget_steps: Adam steps that give the time of a cell, in ``fixed-time``; else 0. Unit: steps.
    """

    name: str
    rule: str
    fixed: Mapping[str, object] = field(default_factory=dict)
    usual: Mapping[str, object] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    budget_steps: int = 0
    plans: bool = False

    def to_json(self) -> ProtocolRecord:
        """Return what a result says of its protocol."""
        return {
            "name": self.name,
            "rule": self.rule,
            "fixed": _plain(self.fixed),
            "usual": _plain(self.usual),
            "inputs": list(self.inputs),
            "budget_steps": self.budget_steps,
        }


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: getattr(value, "value", value) for name, value in settings.items()}


_EVERY_8TH = "every 8th view by name is held out, or the capture's own test views"

_ONE_VIEW: dict[str, object] = {"view_batch": 1, "sh_interval": 1000}
"""For every optimizer alike, whatever one would take by itself."""

_PROTOCOLS = (
    Protocol(
        "dense",
        f"{_EVERY_8TH}; one shuffled view a step unless the suite names more",
        fixed={"test_every": 8, "input_views": 0, "max_seconds": 0.0},
        usual=_ONE_VIEW,
    ),
    Protocol(
        "sparse",
        "few input views chosen by farthest-point sampling of camera positions, from the one nearest to their mean; "
        "all other views are held out, or the capture's own test views",
        fixed={"test_every": 8, "max_seconds": 0.0},
        usual=_ONE_VIEW,
        inputs=(3, 6, 8),
    ),
    Protocol(
        "long",
        f"{_EVERY_8TH}; training goes on well past the horizon that schedules are planned for, and the worst drop "
        "after the peak is reported",
        fixed={"test_every": 8, "input_views": 0, "max_seconds": 0.0},
        usual={"steps": 30_000, "horizon": 7000, **_ONE_VIEW},
    ),
    Protocol(
        "fixed-time",
        f"{_EVERY_8TH}; every method has the seconds of {BUDGET_STEPS} Adam steps, measured on that scene and machine, "
        "8 views a step by farthest-point sampling of camera positions, all colour bands from the start; read at its "
        "last and at its best step; a method that has taken its `steps` before its time is up ends there",
        fixed={"test_every": 8, "input_views": 0, "view_batch": 8, "view_choice": ViewChoice.FARTHEST},
        usual={"steps": BUDGET_STEPS, "sh_interval": 0},
        budget_steps=BUDGET_STEPS,
    ),
    Protocol(
        "minutes",
        f"{_EVERY_8TH}; every run plans itself to end after its minutes, with its last scoring and its files, and no "
        "held-out view is looked at on the way but for the scores before and after",
        fixed={"test_every": 8, "input_views": 0, "max_seconds": 0.0, "eval_every": 0, "steps": None},
        plans=True,
    ),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.name: protocol for protocol in _PROTOCOLS})
"""All protocols by name."""


def find_protocol(name: object, where: str) -> Protocol:
    """Return the protocol of ``name``.

    Args:
        name: Its name.
        where: Where that was read, for the message.

    Raises:
        InputError: There is none; names the nearest.
    """
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise InputError(f"{where}: there is no protocol {quoted(name)}; {nearest_names(str(name), PROTOCOLS)}")
    return PROTOCOLS[name]
