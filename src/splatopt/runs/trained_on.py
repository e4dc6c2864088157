"""Whether a run is still looked at, and gone on with, beside what it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from splatopt.core.checks import InputError
from splatopt.core.frame import FRAME_KEY, Frame
from splatopt.runs.folder import TRAINED_ON, RunFolder, read_json

_SAID = {
    "kind": "it is {found} and not {kept}",
    "views": "the capture has {found}, the run was trained on {kept}",
    "names": "its views have other names, or another order, than those that the run was trained on",
    "intrinsics": "its cameras have other sizes, focal lengths or centres than those that the run was trained on",
    "poses": "its cameras have other poses than those that the run was trained on",
    "masks": "its masks are {found}, the run's were {kept}",
    "mask files": "its masks have other pixels than those that the run was trained on",
    "split": "its split is {found}, the run's was {kept}",
    "held out": "other views are held out than in the run",
    "points": "the capture has {found} points, the run began with {kept}",
    "size": "the image is {found} pixels, the run was fitted to {kept}",
    "pixels": "the image has other pixels than the one that the run was fitted to",
    "mesh": "the mesh has {found}, the run was fitted to {kept}",
    "surface": "the mesh has other vertices or faces than the one that the run was fitted to",
}
"""What a fingerprint's parts are, in the order in which they are compared, and what is said where one differs."""


def difference(kept: Mapping[str, str], found: Mapping[str, str], apart: Iterable[str] = ()) -> str | None:
    """Return in words what tells two fingerprints apart first; None where nothing does.

    Args:
        kept: The run's; parts that it lacks are not compared.
        found: What lies there now.
        apart: Parts that do not matter.
    """
    for part, said in _SAID.items():
        if part not in apart and part in kept and kept[part] != found.get(part, kept[part]):
            return said.format(kept=kept[part], found=found[part])
    return None


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


def training_frame(folder: RunFolder) -> Frame | None:
    """Return the frame that a run is trained in; None where an older version trained in the capture's own.

    Raises:
        InputError: What ``config.json`` holds in its place is no frame.
    """
    kept = _kept(folder) or {}
    try:
        return Frame.parse(kept[FRAME_KEY]) if FRAME_KEY in kept else None
    except InputError as error:
        raise InputError(f"{folder.config}: {error}") from error


def _kept(folder: RunFolder) -> Mapping[str, str] | None:
    """The fingerprint that the run's configuration holds; None where an older version kept none."""
    found = read_json(folder.config).get(TRAINED_ON)
    if found is None or (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        return found
    raise InputError(
        f"{folder.config}: {TRAINED_ON!r} is not the fingerprint of what the run was trained on; take it out to go on "
        "unchecked"
    )
