"""The keyword arguments of ``splatopt.train`` and ``splatopt.fit``, which editors complete."""

from __future__ import annotations

import inspect
import types
from enum import Enum
from pathlib import Path
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints

import pytest

import splatopt
from splatopt.core.checks import InputError
from splatopt.fit.config import FitConfig
from splatopt.fit.settings import FitSettings
from splatopt.fit.verb import fit
from splatopt.runs.config import RunConfig
from splatopt.train.config import TrainConfig
from splatopt.train.settings import TrainSettings
from splatopt.train.verb import train

KINDS = [(TrainConfig, TrainSettings, train), (FitConfig, FitSettings, fit)]


def words(name: str, hint: object) -> str:
    """A setting's type as a caller may give it: words for choices and paths, and any sequence of plug-in files."""
    if name == "plugins":
        return "Sequence[Path | str]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"{hint.__name__} | str"
    if get_origin(hint) in (types.UnionType, Union):
        return " | ".join(words(name, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        parts = ["..." if part is Ellipsis else words(name, part) for part in get_args(hint)]
        return f"tuple[{', '.join(parts)}]"
    plain: dict[object, str] = {Any: "object", Path: "Path | str", type(None): "None"}
    return plain.get(hint, getattr(hint, "__name__", ""))


def lines(config: type[RunConfig]) -> list[str]:
    """What the class must hold, one line for each setting but the one that is given by its place."""
    places = config.setting_places().items()
    return [f"    {name}: {words(name, place.hint)}" for name, place in places if name != config.subject]


@pytest.mark.parametrize(("config", "settings", "verb"), KINDS)
def test_every_setting_is_typed(config, settings, verb):
    source = inspect.getsource(settings).splitlines()
    wanted = lines(config)
    held = [line for line in source if ":" in line and not line.lstrip().startswith(("class", '"""'))]
    place = Path(inspect.getfile(settings)).name
    missing = "\n".join(line for line in wanted if line not in held)
    stale = "\n".join(line for line in held if line not in wanted)
    assert not missing, f"{settings.__name__} in {place} lacks these lines:\n{missing}"
    assert not stale, f"{settings.__name__} in {place} has lines of settings that there are not:\n{stale}"
    assert held == wanted, f"{settings.__name__} in {place} must hold the settings in their order"
    assert set(get_type_hints(settings)) == set(config.setting_places()) - {config.subject}
    assert not settings.__required_keys__
    assert inspect.signature(verb, eval_str=True).parameters["settings"].annotation == Unpack[settings]


def test_unknown_settings_are_still_a_sentence():
    with pytest.raises(InputError, match="no setting 'stepz'"):
        splatopt.train("nowhere", stepz=3)
    with pytest.raises(InputError, match="no setting 'fields'"):
        splatopt.fit("nowhere", fields="sine")
