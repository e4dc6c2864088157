"""One small COLMAP capture, written in every form, encoding and place that we read, is the same capture."""

from __future__ import annotations

import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import lens, picture, reconstruction, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from splatopt.data import Capture, load_capture

VIEWS = 9
NAMES = [f"cam/Bäume {index}.png" for index in range(VIEWS)]
"""On disk, composed."""

RENAMED: dict[str, Callable[[str], str]] = {
    "as they are": lambda name: name,
    "Windows": lambda name: ".\\" + name.replace("/", "\\"),
    "a drive": lambda name: "C:\\Users\\me\\capture\\images\\" + name.replace("/", "\\"),
    "case": lambda name: name.replace(".png", ".PNG").replace("cam", "Cam"),
    "decomposed": lambda name: unicodedata.normalize("NFD", name),
    "a dot": lambda name: "./" + name,
    "a folder": lambda name: "images/" + name,
    "another ending": lambda name: name.replace(".png", ".JPG"),
    "no ending": lambda name: name.removesuffix(".png"),
}
"""How the model may call them."""

PLACES = {
    "sparse/0": "images",
    "sparse": "images",
    "colmap/sparse/0": "images",
    ".": ".",
    "images": "images",
    "sparse/1": "input",
    "sparse/2": ".",
    "dense/sparse": "dense/images",
    "distorted/sparse/0": "input",
}
"""Where the model lies, and where its images do."""


@dataclass(frozen=True)
class Form:
    """How a capture is written."""

    binary: bool
    point_lines: bool
    encoding: str
    line_end: str
    place: str
    renamed: str
    own_split: bool


FORMS = st.builds(
    Form,
    binary=st.booleans(),
    point_lines=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    place=st.sampled_from(sorted(PLACES)),
    renamed=st.sampled_from(sorted(RENAMED)),
    own_split=st.booleans(),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed=index)).save(folder / name)
    return folder


def write(capture: Path, images: Path, form: Form) -> None:
    """Write the capture in one form."""
    shutil.copytree(images, capture / PLACES[form.place], dirs_exist_ok=True)
    model = reconstruction([lens("OPENCV")], VIEWS)
    for number, image in sorted(model.images.items()):
        image.name = RENAMED[form.renamed](NAMES[number - 1])
    folder = write_model(capture / form.place, model, binary=form.binary)
    if form.own_split:
        written = "\n".join(RENAMED[form.renamed](NAMES[index]) for index in (2, 5)) + "\n"
        (folder / "test.txt").write_bytes(written.replace("\n", form.line_end).encode(form.encoding))
    if form.binary:
        return
    for file in [folder / f"{name}.txt" for name in ("cameras", "images", "points3D")]:
        lines = file.read_text(encoding="utf-8").splitlines()
        if file.name == "images.txt" and not form.point_lines:
            lines = [line for line in lines if line.startswith("#") or "Bäume" in unicodedata.normalize("NFC", line)]
        file.write_bytes("".join(line + form.line_end for line in lines).encode(form.encoding))


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory) -> Capture:
    folder = tmp_path_factory.mktemp("plain")
    write(folder, images, Form(True, True, "utf-8", "\n", "sparse/0", "as they are", False))
    return load_capture(folder)


def check_same(one: Capture, other: Capture) -> None:
    assert [camera.fx for camera in one.cameras] == [camera.fx for camera in other.cameras]
    for a, b in zip(one.cameras, other.cameras, strict=True):
        assert (a.fx, a.fy, a.cx, a.cy, a.width, a.height) == (b.fx, b.fy, b.cx, b.cy, b.width, b.height)
        np.testing.assert_allclose(a.world_to_camera, b.world_to_camera, atol=1e-12)
    assert one.points is not None
    assert other.points is not None
    np.testing.assert_allclose(one.points.positions.sort(0).values, other.points.positions.sort(0).values, atol=1e-12)
    assert torch.equal(one.points.colors.sort(0).values, other.points.colors.sort(0).values)
    files = [[source.path.name for source in capture.images.sources] for capture in (one, other)]
    assert files[0] == files[1]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(form=FORMS)
def test_every_form_is_the_same_capture(images: Path, expected: Capture, form: Form) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "capture", images, form)
        found = load_capture(Path(folder) / "capture")
    check_same(found, expected)
    if form.own_split:
        assert (found.split.name, found.split.is_own, found.split.test) == ("test.txt", True, (2, 5))
    else:
        assert found.split == expected.split
    said = [warning for warning in found.warnings if "under other names" in warning]
    exact = form.renamed in ("as they are", "a dot", "no ending")
    exact |= form.renamed == "a folder" and PLACES[form.place] in ("images", "dense/images")
    assert len(said) <= 1
    if not exact:
        assert said[0].startswith(f"{VIEWS} of {VIEWS} images lie under other names than the capture gives them")
        assert "Bäume 0.png'" in said[0]
