"""From photographs or a video to a capture: what is kept between starts, and how the capture is put in place.

Beside the capture's place lies a hidden folder, where everything is done; whatever ends the work, the same call goes on
there. The capture appears whole, and the hidden folder goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from splatopt.core.checks import InputError, short, writing
from splatopt.core.files import discard, locked, make_folder, new_file, whole_file, whole_folder
from splatopt.core.native import default_threads
from splatopt.core.reading import read_object
from splatopt.data.images import read_pixels
from splatopt.data.structure_from_motion.image_pairs import pairs_of
from splatopt.data.structure_from_motion.input_images import (
    MIN_IMAGES,
    InputImage,
    by_lens,
    check_enough,
    image_files,
    image_root,
    read_images,
)
from splatopt.data.structure_from_motion.stages import DATABASE, FoundModel, Job, Tell
from splatopt.data.structure_from_motion.video_frames import write_frames
from splatopt.data.structure_from_motion.worker import LOG, Work, work_in_process

MARK = "poses.json"
"""The file of a capture that says that it is from here, from what, and how it went."""

_MAX_FRAMES = 100_000


@dataclass(frozen=True)
class PoseOptions:
    """How poses are looked for."""

    frames: int = 150
    """Frames that are taken from a video, the sharpest of each stretch of time. Unit: frames. Source: so many are
    still compared each with each."""

    max_side: int = 1600
    """Photographs are shrunk for the search until their longer side has at most so many pixels; the capture keeps them
    as they are. Unit: pixels. Source: half of COLMAP's own 3200 for SIFT."""

    seed: int = 0
    """Decides on everything that is drawn."""

    threads: int = 0
    """Threads that compute; 0 for as many as there are processors."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value, low, high in (
            ("frames", self.frames, MIN_IMAGES, _MAX_FRAMES),
            ("max-side", self.max_side, 64, 100_000),
            ("seed", self.seed, 0, 2**31 - 1),
            ("threads", self.threads, 0, 1024),
        ):
            if not low <= value <= high:
                raise InputError(f"--{name} must be at least {low} and at most {high}, got {value}")


@dataclass(frozen=True)
class PosedCapture:
    """What came of it.

    Attributes:
        folder: The capture.
        images: Photographs, or frames, that could be read.
        model: The largest model; its photographs are those that have a pose.
        without_pose: Names of those that have none.
        unreadable: Names of files that cannot be read.
        other_models: Numbers of photographs of the models that were left aside.
        masks: Files of a folder ``masks`` beside the photographs, taken along.
    """

    folder: Path
    images: int
    model: FoundModel
    without_pose: tuple[str, ...]
    unreadable: tuple[str, ...]
    other_models: tuple[int, ...]
    masks: int = 0


def pose_images(
    source: Path, out: Path, options: PoseOptions | None = None, tell: Tell | None = None, work: Work = work_in_process
) -> PosedCapture:
    """Find the camera of each photograph, and write a capture with a COLMAP model.

    Args:
        source: A folder of photographs, or a video.
        out: The capture; must not exist, be empty, or be what the same call has written before, which is kept.
        options: How.
        tell: Called with the name of a stage, what is done of it and what there is to do.
        work: Does COLMAP's stages.

    Raises:
        InputError: There is nothing to find poses for, none were found, or ``out`` holds something else.
    """
    options, tell = options or PoseOptions(), tell or (lambda stage, done, total: None)
    out = out if out.name not in ("", "..") else out.resolve()
    asked = _asked(source, out, options)
    hidden = work_folder(out)
    if (finished := _finished(out, asked)) is not None:
        discard(hidden)
        return finished
    make_folder(hidden)
    with locked(hidden, f"the poses of {out}"):
        _begin(hidden, asked)
        try:
            posed = _pose(source, hidden, out, options, tell, work)
        except InputError:
            if not any((hidden / kept).exists() for kept in (DATABASE, LOG, "frames")):
                discard(hidden)  # nothing was done that is worth keeping
            raise
        _put_in_place(posed, hidden, out, asked)
        discard(hidden)
    return posed.outcome


def work_folder(out: Path) -> Path:
    """Return the hidden folder beside a capture where its poses are looked for."""
    return out.with_name(f".{out.name}.poses")


@dataclass(frozen=True)
class _Posed:
    images: Sequence[InputImage]
    names: Sequence[str]
    masks: Path
    outcome: PosedCapture


def _pose(source: Path, hidden: Path, out: Path, options: PoseOptions, tell: Tell, work: Work) -> _Posed:
    """Do what is left to be done in the hidden folder."""
    root = image_root(source)
    if source.is_file():
        root = hidden / "frames"
        if not root.exists():
            write_frames(source, root, options.frames, hidden / "ffmpeg.log", lambda *count: tell("frames", *count))
    images, unreadable = read_images(root, image_files(root, (out, hidden)))
    check_enough(images, unreadable, source)
    files = [_laid_out(image, place, hidden / "images") for place, image in enumerate(images)]
    names = [_in_utf8(image.name) for image in images]
    if not (hidden / "models.json").exists():
        job = Job(
            names=dict(zip(files, names, strict=True)),
            cameras=tuple(tuple(files[place] for place in group) for group in by_lens(images)),
            pairs=tuple((files[one], files[other]) for one, other in pairs_of([image.path for image in images])),
            max_side=options.max_side,
            seed=options.seed,
            threads=options.threads or default_threads(),
        )
        job.write(hidden / "job.json")
        work(hidden, tell)
    models = [FoundModel(**one | {"names": tuple(one["names"])}) for one in _read_list(hidden / "models.json")]
    if not models or len(models[0].names) < MIN_IMAGES:
        discard(hidden / "models.json")
        raise InputError(
            f"no {MIN_IMAGES} of the {len(images)} photographs of {short(source)} could be joined; take sharp ones of "
            "one place that stands still, each sharing two thirds with the next, from places that differ; "
            f"{short(hidden / LOG)} has COLMAP's words"
        )
    posed = set(models[0].names)
    without = tuple(name for name in names if name not in posed)
    others = tuple(len(model.names) for model in models[1:])
    masks = _masks_of(root)
    outcome = PosedCapture(out, len(images), models[0], without, tuple(unreadable), others, masks=len(_files_in(masks)))
    return _Posed(images, names, masks, outcome)


def _masks_of(root: Path) -> Path:
    """Return where masks lie: a folder ``masks`` in that of the photographs, or beside one called images."""
    beside = root.parent / "masks"
    return beside if root.name == "images" and beside.is_dir() else root / "masks"


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _asked(source: Path, out: Path, options: PoseOptions) -> dict[str, object]:
    """Return what tells one task from another: the files by name, size and time of change, and the options."""
    if not source.exists():
        raise InputError(f"there is nothing at {source}; give a folder of photographs, or a video")
    root = image_root(source) if source.is_dir() else source.parent
    files = image_files(root, (out, work_folder(out))) if source.is_dir() else [source]
    if not files:
        raise InputError(f"there are no photographs in {source}; give a folder of JPEG or PNG files, or a video")
    listed = hashlib.sha256()
    for path in files:
        found = path.stat()
        name = os.fsencode(path.relative_to(root))
        listed.update(b"%d %s %d %d\n" % (len(name), name, found.st_size, found.st_mtime_ns))
    asked: dict[str, object] = {"made_by": "splatopt poses", "files": listed.hexdigest()}
    asked |= {"max_side": options.max_side, "seed": options.seed}
    return asked | ({"frames": options.frames} if source.is_file() else {})


def _finished(out: Path, asked: dict[str, object]) -> PosedCapture | None:
    """Return what ``out`` says came of the same task; None where it is free.

    Raises:
        InputError: It holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    saved = read_object(out / MARK) if out.is_dir() else None
    if saved is None or saved.get("asked") != asked:
        what = "something else" if saved is None else "poses of other photographs, or with other options"
        raise InputError(f"{out} holds {what}; name another folder with --out, or remove it first")
    try:
        return _outcome(out, saved["outcome"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{out / MARK} is damaged; remove {out} and give the command again") from error


def _outcome(out: Path, values: Any) -> PosedCapture:
    """Return what :func:`_put_in_place` wrote; raises KeyError or TypeError where it is not that."""
    model = FoundModel(**values["model"] | {"names": tuple(values["model"]["names"])})
    several = {name: tuple(values[name]) for name in ("without_pose", "unreadable", "other_models")}
    return PosedCapture(out, int(values["images"]), model, **several, masks=int(values.get("masks", 0)))


def _begin(hidden: Path, asked: dict[str, object]) -> None:
    """Empty the hidden folder where it is of another task, and say in it of which it is."""
    mark = hidden / MARK
    try:
        same = read_object(mark) == asked
    except InputError:
        same = False
    if same:
        return
    for path in list(hidden.iterdir()):
        discard(path)
    with whole_file(mark) as file:
        file.write(json.dumps(asked).encode())


def _laid_out(image: InputImage, place: int, folder: Path) -> str:
    """Put a photograph where COLMAP reads it, under a name that its lists can hold, and return that name."""
    folder.mkdir(exist_ok=True)
    suffix = image.path.suffix.lower() if image.as_it_is else ".png"
    file = folder / f"{place:06d}{suffix}"
    if file.exists():
        return file.name
    discard(file)
    if image.as_it_is:
        file.symlink_to(image.path.resolve())
    else:
        with whole_file(file) as opened:
            Image.fromarray(read_pixels(image.path, (0.0, 0.0, 0.0))).save(opened, "PNG")
    return file.name


def _in_utf8(name: str) -> str:
    """Return a name that a COLMAP model can hold: bytes that are no UTF-8 become ``%E9``."""
    return "".join(f"%{ord(one) - 0xDC00:02X}" if 0xDC80 <= ord(one) <= 0xDCFF else one for one in name)


def _put_in_place(posed: _Posed, hidden: Path, out: Path, asked: dict[str, object]) -> None:
    """Write the capture: the photographs, linked where the disk can and else copied, the model, and how it went."""
    with whole_folder(out, f"the capture {out}") as partial:
        for image, name in zip(posed.images, posed.names, strict=True):
            file = partial / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(image.path.resolve(), file)
        for path in _files_in(posed.masks):
            file = partial / "masks" / path.relative_to(posed.masks)
            file.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path.resolve(), file)
        model = partial / "sparse" / "0"
        model.mkdir(parents=True)
        for part in ("cameras.bin", "images.bin", "points3D.bin"):
            with writing(model / part):
                shutil.copyfile(hidden / "model" / part, model / part)
        values = {name: value for name, value in asdict(posed.outcome).items() if name != "folder"}
        with new_file(partial / MARK) as opened:
            opened.write(json.dumps({"asked": asked, "outcome": values}, indent=1).encode())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        with writing(target):
            shutil.copyfile(source, target)


def _read_list(path: Path) -> list[Any]:
    found = json.loads(path.read_bytes())
    return found if isinstance(found, list) else []
