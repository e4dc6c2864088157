"""Whether a run is still looked at, and gone on with, beside what it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from splatopt.core.checks import InputError
from splatopt.data.fingerprint import difference
from splatopt.train.folder import TRAINED_ON, RunFolder, read_json


def changed_since(folder: RunFolder, found: Mapping[str, str], apart: Iterable[str] = ()) -> str | None:
    """Return in words what differs from what a run was trained on; None where nothing does, or nothing was kept.

    Args:
        folder: The run's.
        found: The fingerprint of what lies there now.
        apart: Parts of it that do not matter.

    Raises:
        InputError: What ``config.json`` holds in its place is no fingerprint.
    """
    kept = _kept(folder)
    return None if kept is None else difference(kept, found, apart)


def check_resumed(folder: RunFolder, path: str, found: Mapping[str, str]) -> list[str]:
    """Make sure that a run goes on with what it was trained on; returns what to warn of.

    Args:
        folder: The run's.
        path: Where the capture, image or mesh lies now, for messages.
        found: Its fingerprint.

    Raises:
        InputError: It is another one; says what differs.
    """
    if _kept(folder) is None:
        return [
            f"the run in {folder.path} is of an older version, which kept no fingerprint; whether {path} is what it "
            "was trained on cannot be checked, and can be from now on"
        ]
    differs = changed_since(folder, found)
    if differs:
        raise InputError(
            f"{path} is not what the run in {folder.path} was trained on: {differs}; give that, or start a new run "
            "with another --out"
        )
    return []


def check_unchanged(folder: RunFolder, path: str, found: Mapping[str, str], what: str) -> None:
    """Make sure that what a finished run is compared with is what it was trained on.

    Points of a capture do not count: nothing but the start of training looks at them.

    Args:
        folder: The run's.
        path: Where it lies, for the message.
        found: Its fingerprint now.
        what: What would be of something else, for the message.

    Raises:
        InputError: It is another one; says what differs.
    """
    differs = changed_since(folder, found, apart=("points",))
    if differs:
        raise InputError(
            f"{path} is no longer what the run in {folder.path} was trained on, and {what} would be of something "
            f"else: {differs}; put it back as it was"
        )


def _kept(folder: RunFolder) -> Mapping[str, str] | None:
    """The fingerprint that the run's configuration holds; None where an older version kept none."""
    found = read_json(folder.config).get(TRAINED_ON)
    if found is None or (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        return found
    raise InputError(
        f"{folder.config}: {TRAINED_ON!r} is not the fingerprint of what the run was trained on; take it out to go on "
        "unchecked"
    )
