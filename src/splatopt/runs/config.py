"""What configurations of scenes and fields share: settings in groups, their file, and what a run is resumed with."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import tyro

from splatopt.core.bounds import bounds, check_bounds
from splatopt.core.checks import InputError, nearest_names
from splatopt.core.plugins import as_plugins
from splatopt.core.typed import typed_values
from splatopt.runs.folder import RunFolder
from splatopt.runs.plugins import PluginFiles, plugins_from_json, plugins_to_json
from splatopt.runs.renamed import renamed
from splatopt.runs.resuming import AS_ASKED, FREE_ON_RESUME, resumed_settings

MAX_THREADS = 1024
"""More are refused by the native module."""

MAX_SEED = 2**63 - 1

_APART = ("optimizer_options", "loss_options", "density_options", "plugins")
"""Settings that files hold in forms of their own; a resumed run joins what was given with what it has."""

_REQUEST = "resume"
"""A request, not a setting: no file holds it."""

Config = TypeVar("Config", bound="RunConfig")


# ---------------------------------------------------------------------- groups that all runs have


class SettingGroup:
    """A group of settings: a frozen dataclass whose fields declare their bounds and what resuming does to them."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        check_bounds(self)


@dataclass(frozen=True)
class ScheduleOptions(SettingGroup):
    """What is common to all schedules."""

    optimizer_options: tyro.conf.Suppress[Any] = None
    """The optimizer's own dataclass, or with stages a mapping from names to theirs; the defaults when None."""

    seed: int = field(default=0, metadata=bounds(0, MAX_SEED))
    """Seed of the run's only source of randomness."""


@dataclass(frozen=True)
class ScoringOptions(SettingGroup):
    """What is common to all scoring."""

    eval_at: tuple[int, ...] = field(default=(), metadata=bounds(0) | FREE_ON_RESUME)
    """Score after these steps as well. Unit: steps."""


@dataclass(frozen=True)
class SavingOptions(SettingGroup):
    """What is written while the run goes on, and where."""

    out: Path | None = field(default=None, metadata=AS_ASKED)
    """Folder of the run; one below runs/ that is named after what is trained, and how, when None."""

    resume: bool = field(default=False, metadata=AS_ASKED)
    """Go on from the last good checkpoint in the run's folder."""

    checkpoint_seconds: float = field(default=60.0, metadata=bounds(0) | FREE_ON_RESUME)
    """Write a checkpoint at least every so many seconds of training, and at the end; 0 for never by time.
    Unit: seconds."""

    log_every: int = field(default=10, metadata=bounds(1) | FREE_ON_RESUME)
    """Write a line of metrics, the means since the last line, every so many steps. Unit: steps."""


@dataclass(frozen=True)
class ProcessOptions(SettingGroup):
    """What computes."""

    threads: int = field(default=0, metadata=bounds(0, MAX_THREADS) | FREE_ON_RESUME)
    """Threads that compute; 0 for as many as there are processors."""

    max_memory: float = field(default=0.0, metadata=bounds(0) | FREE_ON_RESUME)
    """Memory that training may take, of the host on the CPU and of the device on CUDA; a run that is estimated to
    need more is refused before it begins. 0 for what is free. Unit: GiB."""

    plugins: PluginFiles = ()
    """A Python file that registers an optimizer, a loss, a density strategy or a reader of captures; give it once for
    each file."""

    def __post_init__(self) -> None:
        """Load plug-ins that are given by their path."""
        object.__setattr__(self, "plugins", as_plugins(self.plugins))
        super().__post_init__()


# ---------------------------------------------------------------------- all groups of a run


@dataclass(frozen=True)
class Setting:
    """Where a setting lies.

    Attributes:
        group: Name of its group.
        field: The group's field.
        hint: Its type.
    """

    group: str
    field: Field[object]
    hint: object

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.field.default is MISSING and self.field.default_factory is MISSING


class RunConfig(ABC):
    """A frozen dataclass whose fields are groups of settings; a setting's name is unique over the groups.

    Files, the command line and keyword arguments name settings alone, without their groups.
    """

    subject: ClassVar[str]
    """Name of the setting that is given by its place: what is trained on."""

    saving: SavingOptions
    processes: ProcessOptions

    @classmethod
    def of(cls: type[Config], subject: Path | str, **settings: object) -> Config:
        """Return the configuration with these settings, and all others at their defaults.

        Args:
            subject: What is trained on: a capture, an image or a mesh.
            **settings: By name; ``out`` may be a string, and so may each of ``plugins``, which are loaded.

        Raises:
            InputError: There is no such setting, or something that was given cannot be used.
        """
        known = cls.setting_names() - {cls.subject}
        for name in settings:
            if name not in known:
                raise InputError(f"there is no setting {name!r}; {nearest_names(name, known)}")
        if settings.get("out") is not None:
            settings["out"] = Path(str(settings["out"]))
        if "plugins" in settings:  # before the settings that name what they register are checked
            settings["plugins"] = as_plugins(settings["plugins"])
        words = (str, list, tuple, Path, Enum)  # of settings that are chosen by a word, or are a row of numbers
        plain = {
            name: _as_in_a_file(value)
            for name, value in settings.items()
            if name not in _APART and isinstance(value, words)
        }
        typed = cls.typed_settings(plain, known, "the settings")
        return cls._grouped({cls.subject: str(subject), **settings, **typed})

    @classmethod
    @functools.cache
    def setting_places(cls) -> Mapping[str, Setting]:
        """Return where each setting lies, by name in the order of the groups."""
        kinds = get_type_hints(cls)
        places: dict[str, Setting] = {}
        for group in fields(cls):  # type: ignore[arg-type] # a dataclass
            hints = get_type_hints(kinds[group.name])
            for item in fields(kinds[group.name]):
                if item.name in places:
                    raise TypeError(f"{item.name!r} is a setting of {places[item.name].group} and of {group.name}")
                places[item.name] = Setting(group.name, item, hints[item.name])
        return places

    @classmethod
    def setting_names(cls) -> set[str]:
        """Return the names of all settings."""
        return set(cls.setting_places())

    @classmethod
    def typed_settings(cls, values: Mapping[str, object], known: Collection[str], where: str) -> dict[str, Any]:
        """Return ``values`` with each in the type of its setting.

        Args:
            values: Names of settings and what was given for them.
            known: Names of those that may be given.
            where: Where they stand, for messages.

        Raises:
            InputError: A name is unknown, or a value has another type.
        """
        hints = {name: place.hint for name, place in cls.setting_places().items()}
        return typed_values(values, hints, known, "setting", where)

    @classmethod
    def _grouped(cls: type[Config], settings: Mapping[str, object]) -> Config:
        """Return the configuration with ``settings``, whose names were checked."""
        given: dict[str, dict[str, object]] = {}
        for name, value in settings.items():
            given.setdefault(cls.setting_places()[name].group, {})[name] = value
        kinds = get_type_hints(cls)
        return cls(**{group: kinds[group](**values) for group, values in given.items()})

    def settings(self) -> dict[str, object]:
        """Return all settings by name."""
        places = type(self).setting_places()
        return {name: getattr(getattr(self, place.group), name) for name, place in places.items()}

    def changed(self: Config, **settings: object) -> Config:
        """Return the configuration with other values of these settings, by name."""
        given: dict[str, dict[str, object]] = {}
        for name, value in settings.items():
            given.setdefault(type(self).setting_places()[name].group, {})[name] = value
        groups = {group: replace(getattr(self, group), **values) for group, values in given.items()}
        return replace(self, **groups)  # type: ignore[type-var] # a dataclass

    @property
    def folder(self) -> Path:
        """The run's folder; raises ValueError where it was left to be chosen and ``resolved`` was not called."""
        if self.saving.out is None:
            raise ValueError("the run's folder is not chosen yet; call resolved()")
        return Path(self.saving.out)

    # ------------------------------------------------------------------ the run's file

    def to_json(self) -> dict[str, object]:
        """Return the settings by name as JSON values; ``resume`` is a request, not a setting, and left out."""
        values = {name: _plain(value) for name, value in self.settings().items() if name not in (_REQUEST, *_APART)}
        values[self.subject] = str(Path(str(values[self.subject])).absolute())
        return values | self._options_to_json() | {"plugins": plugins_to_json(self.processes.plugins)}

    @classmethod
    def from_json(cls: type[Config], values: Mapping[str, object], where: str) -> Config:
        """Return the configuration that :meth:`to_json` gave.

        Args:
            values: What was read.
            where: The file it was read from, for messages.

        Raises:
            InputError: A setting is unknown, has the wrong form or is missing.
        """
        known = cls.setting_names() - {_REQUEST}
        values = renamed(values, known)
        settings = cls.typed_settings({name: values[name] for name in values if name not in _APART}, known, where)
        for name, place in cls.setting_places().items():
            if place.is_required and name not in settings:
                raise InputError(f"{where}: {name} is missing")
        settings |= cls._options_from_json(values, settings, where)
        settings["plugins"] = plugins_from_json(values.get("plugins"), where)
        try:
            return cls._grouped(settings)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def read(cls: type[Config], folder: RunFolder) -> Config:
        """Return what the run in ``folder`` was told, with ``out`` where the folder lies now.

        Raises:
            InputError: There is no run of this kind here.
        """
        return cls.from_json(folder.read_settings(), str(folder.config)).changed(out=folder.path)

    @abstractmethod
    def _options_to_json(self) -> dict[str, object]:
        """Return, by setting, the options of optimizers, losses and strategies as JSON values."""

    @classmethod
    @abstractmethod
    def _options_from_json(
        cls, values: Mapping[str, object], settings: Mapping[str, Any], where: str
    ) -> dict[str, object]:
        """Return, by setting, the options of optimizers, losses and strategies that a run's file holds.

        Args:
            values: What was read.
            settings: All other settings.
            where: The file, for messages.
        """

    # ------------------------------------------------------------------ resuming

    def resuming(self: Config, saved: Config) -> Config:
        """Return the configuration to resume ``saved`` with.

        What was left at its default takes the saved value. What was given must agree with it, except for settings
        that are free on resume, which may change.

        Raises:
            InputError: A setting that shaped the steps already taken was given another value.
        """
        items = [place.field for name, place in self.setting_places().items() if name not in _APART]
        chosen = resumed_settings(items, self.settings(), saved.settings())
        chosen["plugins"] = (*saved.processes.plugins, *self.processes.plugins)
        return self._resumed(saved, chosen)

    @abstractmethod
    def _resumed(self: Config, saved: Config, chosen: dict[str, object]) -> Config:
        """Return the configuration to resume ``saved`` with.

        Args:
            saved: What the run was started with.
            chosen: All settings but the options of optimizers, losses and strategies.
        """


def _as_in_a_file(value: object) -> object:
    """A setting as JSON holds it, tuples as lists."""
    return list(value) if isinstance(value, tuple) else _plain(value)


def _plain(value: object) -> object:
    """A value as JSON holds it."""
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, Enum) else value
