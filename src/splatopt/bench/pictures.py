"""Pictures of a suite's cells: held-out views as photographed and as each optimizer left them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from splatopt.bench.cells import Cell
from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder
from splatopt.core.reading import DamagedFileError, read_bounded, read_object
from splatopt.core.typed import Fields
from splatopt.raster.threads import quiet_torch
from splatopt.report.pictures import greyed, spread
from splatopt.runs.folder import write_json
from splatopt.train.run import open_run

FOLDER = "pictures"
INDEX = "index.json"
TARGET = "photograph"

_MAX_SIDE = 640
_MAX_BYTES = 8 << 20
_MAX_PICTURES = 2000


@dataclass(frozen=True)
class Picture:
    """One view, as several saw it.

    Attributes:
        title: Scene, setting and view in words.
        images: By label, the photograph first: data URIs of one size.
    """

    title: str
    images: Mapping[str, str]


def draw_pictures(out: Path, cells: Sequence[Cell], max_views: int) -> None:
    """Render held-out views of each entry's first seed and keep them in the suite's folder.

    Args:
        out: The suite's folder.
        cells: Those that are done.
        max_views: So many views of each scene at most, spread evenly; 0 for none.
    """
    folder = out / FOLDER
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        first.setdefault((cell.scene, cell.setting, cell.label), cell)
    entries: list[dict[str, str]] = []
    for cell in first.values() if max_views > 0 else ():
        entries += _draw(folder, cell, max_views, {(one["scene"], one["setting"]) for one in entries})
    if entries:
        write_json(folder / INDEX, {"pictures": entries})


def _draw(folder: Path, cell: Cell, max_views: int, with_target: set[tuple[str, str]]) -> list[dict[str, str]]:
    """Render the views of one cell; the first of a scene brings the photographs."""
    make_folder(folder)
    run = open_run(cell.config.folder)
    # The scene may have moved since the cell was run.
    run = replace(run, config=run.config.changed(capture=cell.config.data.capture))
    capture = run.open_capture()
    objective = run.objective(capture)
    entries = []
    for number, view in enumerate(spread(capture.split.test or capture.split.train, max_views)):
        camera = capture.cameras[view]
        with quiet_torch(objective.renderer):
            image = objective.renderer.render(objective.cloud, camera, objective.options).image
        drawn = {cell.label: (image.clamp(0, 1) * 255).round().to(torch.uint8)}
        if (cell.scene, cell.setting) not in with_target:
            drawn = {TARGET: capture.images[view], **drawn}
        for label, picture in drawn.items():
            name = f"{cell.name}.{number}{'.photo' if label == TARGET else ''}.webp"
            replace_file(folder / name, _webp(greyed(picture.cpu(), capture.images.seen(view))))
            place = {"protocol": str(cell.protocol["name"]), "scene": cell.scene, "setting": cell.setting}
            entries.append({**place, "view": camera.name, "label": label, "file": name})
    return entries


def _webp(picture: Tensor) -> bytes:
    """The picture without loss, so that differences are true; shrunk where it is large."""
    image = Image.fromarray(picture.cpu().contiguous().numpy())
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=True)
    return buffer.getvalue()


def load_pictures(folders: Sequence[Path]) -> list[Picture]:
    """Return the pictures that suites' folders hold; none where they have none.

    What a folder from elsewhere names is taken as data: files of its own picture folder, of a bounded size.

    Args:
        folders: Suites' folders.

    Raises:
        InputError: An index is not of its form, or a picture is none.
    """
    found: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for out in folders:
        for entry in _entries(out / FOLDER / INDEX):
            key = (entry["protocol"], entry["scene"], entry["setting"], entry["view"])
            found.setdefault(key, {}).setdefault(entry["label"], _data_uri(out / FOLDER / entry["file"]))
    pictures = []
    for (_, scene, setting, view), images in found.items():
        # The photograph stands first.
        ordered = dict(sorted(images.items(), key=lambda item: item[0] != TARGET))
        pictures.append(Picture(", ".join(part for part in (scene, setting, view) if part), ordered))
    return [picture for picture in pictures if len(picture.images) > 1]


def _entries(path: Path) -> list[dict[str, str]]:
    values = read_object(path)
    if values is None:
        return []
    names = ("protocol", "scene", "setting", "view", "label", "file")
    try:
        found = Fields(values, str(path)).objects("pictures", _MAX_PICTURES)
        entries = [{name: one.text(name) for name in names} for one in found]
        # A name with folders in it would lead elsewhere.
        if any(Path(one["file"]).name != one["file"] or "\0" in one["file"] for one in entries):
            raise InputError("a file's name leads elsewhere")
    except InputError as error:
        raise InputError(f"{path} is not a list of pictures ({error}); delete it, or run the suite again") from error
    return entries


def _data_uri(path: Path) -> str:
    try:
        content = read_bounded(path, _MAX_BYTES)
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "WEBP":
                raise InputError(f"{path} is no picture of a report; delete it, or run the suite again")
    except (OSError, DamagedFileError) as error:
        raise InputError(f"{path} cannot be read as a picture; delete it, or run the suite again") from error
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
