"""Plug-in files of a run: how they are given, what ``config.json`` keeps of them, and how they are found again.

A run's file names Python files, and whoever wrote it may name any. So they are run again only where the run itself is
gone on with; commands that only look at a run take what ``--plugin`` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from splatopt.core.checks import InputError, short
from splatopt.core.plugins import PluginFile, digest_of, load_plugin, loaded_plugins
from splatopt.core.typed import Fields
from splatopt.runs.folder import RunFolder, read_json

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 1000

PluginFiles = Annotated[
    tuple[
        Annotated[
            PluginFile,
            tyro.constructors.PrimitiveConstructorSpec(
                nargs=1,
                metavar="FILE.py",
                instance_from_str=lambda words: load_plugin(words[0]),
                is_instance=lambda value: isinstance(value, PluginFile),
                str_from_instance=lambda value: [str(value)],
            ),
        ],
        ...,
    ],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name="plugin"),
]
"""A field of plug-in files, each given by a ``--plugin`` of its own."""


def plugins_to_json(plugins: Sequence[PluginFile]) -> list[dict[str, str]]:
    """Return what a run's file says of its plug-ins: where each lay, and what it held."""
    return [{"path": str(one.path), "sha256": one.sha256} for one in plugins]


def plugins_without_place(plugins: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return what results say of plug-ins, given as :func:`plugins_to_json` has them: names of files, and digests."""
    return [{"file": Path(one["path"]).name, "sha256": one["sha256"]} for one in plugins]


def plugins_from_json(values: Any, where: str) -> tuple[PluginFile, ...]:
    """Return the plug-ins that :func:`plugins_to_json` described; none of them is run.

    Args:
        values: What was read; None for none.
        where: The file, for messages.

    Raises:
        InputError: It is of another form.
    """
    if values is None:
        return ()
    found = []
    for one in Fields({"plugins": values}, where).objects("plugins", _MAX_FILES):
        path, digest = Path(one.text("path")), one.text("sha256")
        if not path.is_absolute() or not _DIGEST.fullmatch(digest):
            raise InputError(f"{one.where} must be an absolute path with a SHA-256 digest; the file was changed")
        found.append(PluginFile(path, digest))
    return tuple(found)


def recorded_plugins(folder: RunFolder) -> tuple[PluginFile, ...]:
    """Return the plug-ins of the run in ``folder``, none where there is none; raises InputError for a damaged file."""
    return plugins_from_json(read_json(folder.config).get("plugins"), str(folder.config))


@dataclass(frozen=True)
class FoundPlugins:
    """Plug-ins of a run, loaded again.

    Attributes:
        plugins: As they are now.
        warnings: One sentence for each that has changed.
    """

    plugins: tuple[PluginFile, ...]
    warnings: tuple[str, ...]


def load_again(plugins: Sequence[PluginFile], run: str) -> FoundPlugins:
    """Load the plug-ins of a run that is gone on with.

    One that was loaded already, with the same digest or, where the recorded file is gone, under the same file name,
    takes its place: that is how a file that was moved is given again with ``--plugin``.

    Args:
        plugins: As recorded.
        run: What they belong to, for messages.

    Raises:
        InputError: One is gone or cannot be loaded.
    """
    found, warnings = [], []
    for kept in plugins:
        now = _given_again(kept)
        if now is None and not kept.path.is_file():
            raise InputError(
                f"{run} was started with the plug-in {short(kept.path)}, which is no longer there; give it with "
                f"--plugin, as in --plugin {short(Path(kept.path.name))}"
            )
        now = now or load_plugin(kept.path)
        found.append(now)
        if now.sha256 != kept.sha256:
            warnings.append(
                f"the plug-in {short(now.path)} has changed since {run} was started: its SHA-256 was "
                f"{kept.sha256[:12]} and is {now.sha256[:12]}"
            )
    return FoundPlugins(tuple(found), tuple(warnings))


def load_unchanged(plugins: Sequence[PluginFile], run: str) -> tuple[PluginFile, ...]:
    """Load plug-ins as :func:`load_again` does, and return them; raises InputError where one has changed as well."""
    for kept in plugins:
        if _given_again(kept) is None and kept.path.is_file() and digest_of(kept.path) != kept.sha256:
            raise InputError(
                f"the plug-in {short(kept.path)} has changed since {run} was started; put it back as it was, or begin "
                "anew with another --out"
            )
    found = load_again(plugins, run)
    if found.warnings:
        raise InputError(f"{found.warnings[0]}; put it back as it was, or begin anew with another --out")
    return found.plugins


def _given_again(kept: PluginFile) -> PluginFile | None:
    """What was loaded in place of a recorded plug-in; None where nothing was."""
    loaded = loaded_plugins()
    same = [one for one in loaded if one.sha256 == kept.sha256]
    if same or kept.path.is_file():
        return next(iter(same), None)
    return next((one for one in loaded if one.path.name == kept.path.name), None)


def plugins_missing(plugins: Sequence[PluginFile]) -> str:
    """Return how to give what was not loaded of a run's plug-ins; empty where all were."""
    missing = [one.path for one in plugins if _given_again(one) is None]
    return "".join(f"; the run was made with a plug-in, add --plugin '{short(path)}'" for path in missing[:1])
