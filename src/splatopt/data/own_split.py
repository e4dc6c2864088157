"""The split that a ``transforms.json`` names itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from splatopt.core.checks import InputError, quoted
from splatopt.data.image_lookup import find_images
from splatopt.data.source import PosedImage
from splatopt.data.split_files import named_views

TRAIN, VALIDATION, TEST = "train_filenames", "val_filenames", "test_filenames"
"""nerfstudio's lists of the files that are trained on, validated on and tested on."""

_TRAIN_PREFIX, _HELD_OUT_PREFIX = "frame_train_", "frame_eval_"


def own_split(
    folder: Path, content: Mapping[str, object], views: Sequence[PosedImage], warnings: list[str]
) -> tuple[list[PosedImage], str]:
    """Return the views with their parts, and the name of the split; without parts where the file says nothing.

    Held out are the views of ``test_filenames``, else of ``val_filenames``, else those that ``train_filenames`` does
    not name. Trained on are those of ``train_filenames``, without it all that no list names; what is in both is held
    out alone. Lists that leave none on one side say nothing. Other views are left out, as in nerfstudio. Without lists,
    files that are all called ``frame_train_…`` or ``frame_eval_…``, as ns-process-data calls them, say it by their
    names.

    Args:
        folder: Where the file lies.
        content: The file.
        views: All its views.
        warnings: Gets a sentence where names are not among the frames, and where views are left out.

    Raises:
        InputError: A list is none of names.

    Source: nerfstudio, ``NerfstudioDataParser`` and its ``eval_mode`` ``filename``.
    """
    files = {os.path.normpath(view.path): view for view in views}
    train, validation, test = (_listed(folder, content, key, files, warnings) for key in (TRAIN, VALIDATION, TEST))
    if not (train or validation or test):
        return _by_prefix(views)
    name, held_out = (TEST, test) if test else (VALIDATION, validation) if validation else (TRAIN, set(files) - train)
    if not held_out:
        warnings.append(f"{TRAIN} names every view and no list names others; test views are chosen from all")
        return list(views), ""
    both = [files[file].name for file in files if file in train and file in held_out]
    others = (train or set(files) - held_out - validation) - held_out
    if not others:
        warnings.append(f"{name} leaves no view to train on; test views are chosen from all")
        return list(views), ""
    if both:
        warnings.append(
            f"{len(both)} photographs are in {TRAIN} and in {name}, such as {quoted(both[0])}; they are held out alone"
        )
    parts = dict.fromkeys(held_out, "test") | dict.fromkeys(others, "train")
    left_out = [files[file].name for file in files if file not in parts]
    if left_out:
        lists = " and ".join((TRAIN, name) if train else (name, VALIDATION))
        what = f"that are in neither of {lists}" if train else f"of {VALIDATION}"
        warnings.append(
            f"{len(left_out)} views {what} are neither trained on nor held out, such as {quoted(left_out[0])}"
        )
    return [replace(view, part=parts[file]) for file, view in files.items() if file in parts], name


def _listed(
    folder: Path, content: Mapping[str, object], key: str, files: Mapping[str, PosedImage], warnings: list[str]
) -> set[str]:
    """Return the files of views that a list names: as names of frames do, else as lines of ``test.txt`` do."""
    names = content.get(key)
    if names is None:
        return set()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{folder}: {key!r} must be a list of names of files; export the file again")
    places = {view.name: file for file, view in files.items()}
    meant = named_views(names, list(places))
    exact = [os.path.normpath(one.path) for one in find_images(folder, names, [])]
    found = {
        name: file if file in files or name not in meant else places[meant[name]]
        for name, file in zip(names, exact, strict=True)
    }
    unknown = [name for name, file in found.items() if file not in files]
    if unknown:
        warnings.append(
            f"{len(unknown)} of {len(found)} names of {key} are not among the frames, such as {quoted(unknown[0])}"
        )
    return {file for file in found.values() if file in files}


def _by_prefix(views: Sequence[PosedImage]) -> tuple[list[PosedImage], str]:
    """Return the split that the files' names say, where the name of each begins with one of the two prefixes."""
    names = [view.path.name for view in views]
    held_out = [name.startswith(_HELD_OUT_PREFIX) for name in names]
    trained = [name.startswith(_TRAIN_PREFIX) for name in names]
    if not any(held_out) or not any(trained) or sum(held_out) + sum(trained) < len(names):
        return list(views), ""
    parts = ("test" if test else "train" for test in held_out)
    return [replace(view, part=part) for view, part in zip(views, parts, strict=True)], "frame_eval"
