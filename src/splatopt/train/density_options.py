"""The group of settings that says which density strategy is at work, and what it keeps to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tyro

from splatopt.core.bounds import bounds, flag
from splatopt.core.checks import InputError
from splatopt.core.typed import read_dataclass
from splatopt.density.strategy import find_density
from splatopt.runs import config as runs
from splatopt.runs.unread import UnreadOptions, read_options
from splatopt.scene.ply import row_bytes

NO_DENSITY = "none"
"""The name of no strategy: the Gaussians of the start are those of the end."""

AUTO = "auto"
"""What is left to the recipe, or to the plain run."""

_GROWTH, _MIN_CAP = 4, 50_000
_MAX_GAUSSIANS = 10**10
"""Far more than any memory holds."""


@dataclass(frozen=True)
class DensityOptions(runs.SettingGroup):
    """Which Gaussians there are: whether some are added and removed while the run goes on."""

    density: str = AUTO
    """Name of the density strategy: none, adc, mcmc, gain, or that of a plug-in; its options follow under its name,
    as in --adc.until. auto is what the recipe says where the run plans itself, and else none."""

    density_options: tyro.conf.Suppress[Any] = None
    """The strategy's own dataclass, or its options by name; its defaults when None."""

    max_gaussians: int | None = field(default=None, metadata=bounds(1, _MAX_GAUSSIANS))
    """Gaussians at most, where a density strategy is at work. When None, four times those of the start, or 50,000
    where that is more; a run that plans itself chooses by the capture and its time. Unit: Gaussians."""

    max_megabytes: float | None = field(default=None, metadata=bounds(0.001, 1e6))
    """As many Gaussians at most as a scene.ply of this size holds, where a density strategy is at work.
    Unit: MB of 10⁶ bytes."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        super().__post_init__()
        object.__setattr__(self, "density_options", _checked_options(self.density, self.density_options))
        for name in ("max_gaussians", "max_megabytes"):
            if getattr(self, name) is not None and self.density == NO_DENSITY:
                raise InputError(
                    f"{flag(name)} {getattr(self, name):g} bounds what a density strategy adds, and none is at work; "
                    f"name one with --density, or leave {flag(name)} out"
                )

    @property
    def is_at_work(self) -> bool:
        """Whether there is a strategy."""
        return self.density not in (NO_DENSITY, AUTO)

    @property
    def is_bound(self) -> bool:
        """Whether a number of Gaussians or a size of the scene was given."""
        return self.max_gaussians is not None or self.max_megabytes is not None

    def cap(self, gaussians: int, sh_degree: int) -> int:
        """Return how many Gaussians there may be at most.

        Args:
            gaussians: How many the run begins with.
            sh_degree: Degree of their colours, by which a file of them is larger or smaller.

        Raises:
            InputError: It begins with more.
        """
        if not self.is_bound:
            return max(_GROWTH * gaussians, _MIN_CAP)
        caps = [] if self.max_gaussians is None else [(self.max_gaussians, f"--max-gaussians {self.max_gaussians}")]
        if self.max_megabytes is not None:
            held = int(self.max_megabytes * 1e6 // row_bytes(sh_degree))
            caps.append((held, f"--max-megabytes {self.max_megabytes:g}, for {held:,} Gaussians,"))
        cap, said = min(caps)
        if cap < gaussians:
            raise InputError(
                f"{said} is fewer than the {gaussians:,} Gaussians that the run begins "
                "with; allow more, or begin with fewer"
            )
        return cap


def _checked_options(name: str, options: Any) -> Any:
    """Return the options of the strategy ``name``, its defaults where none are given; None for no strategy.

    Raises:
        InputError: There is no such strategy, or the options are another's.
    """
    if isinstance(options, UnreadOptions):
        return options
    if name in (NO_DENSITY, AUTO):
        if options is not None:
            raise InputError("options of a density strategy are given, and --density is none; name the strategy")
        return None
    kind = find_density(name).options
    where = f"the options of the density strategy {name!r}"
    if isinstance(options, Mapping):
        return read_dataclass(dict(options), kind, "option", where)
    if options is not None and not isinstance(options, kind):
        raise InputError(f"{where} must be a {kind.__name__}, got a {type(options).__name__}")
    return kind() if options is None else options


def saved_density_options(name: str, saved: Any, where: str) -> Any:
    """Return the options that a run's file holds for its strategy.

    Args:
        name: The strategy.
        saved: What was read; None for none.
        where: The file, for messages.

    Raises:
        InputError: They are no options of this strategy; of one that is not known they stay unread.
    """
    if name in (NO_DENSITY, AUTO) and saved is None:
        return None
    return read_options({} if saved is None else saved, lambda: find_density(name).options, f"{where}: density_options")
