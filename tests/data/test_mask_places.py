"""Where masks are looked for around photographs, and under which names ``mask_path`` finds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import HEIGHT, LENSES, WIDTH, write_colmap, write_transforms
from PIL import Image

from splatopt.data import load_capture
from splatopt.data.lens import Lens
from splatopt.data.masks import with_masks
from splatopt.data.source import PosedImage, Source

INTRINSICS = {"fl_x": 60.0, "fl_y": 62.0, "cx": 41.0, "cy": 29.0, "w": WIDTH, "h": HEIGHT}


def save_mask(path: Path) -> Path:
    """Write a mask that leaves the left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = np.arange(WIDTH)[None, :].repeat(HEIGHT, 0) < WIDTH // 2
    Image.fromarray(seen.astype(np.uint8) * 255).save(path)
    return path


def with_found(root: Path, *files: str) -> Source:
    """The views of photographs at ``files`` below the capture, with their masks."""
    lens = Lens("PINHOLE", WIDTH, HEIGHT, tuple(LENSES["PINHOLE"]))
    images = [PosedImage(Path(file).name, root / file, torch.eye(4), lens) for file in files]
    return with_masks(root, Source("colmap", tuple(images), None))


def masks_of(source: Source) -> list[Path | None]:
    return [one.mask for one in source.images]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("colmap/images/a.jpg", "colmap/masks/a.png"),
        ("dense/0/images/a.jpg", "dense/0/masks/a.jpg.png"),
        ("dense/images/cam/a.jpg", "dense/masks/cam/a.png"),
        ("dense/images_2/a.jpg", "dense/masks_2/a.png"),
        ("keyframes/corrected_images/1.jpg", "keyframes/masks/1.png"),
        ("dense/images/a.jpg", "masks/images/a.png"),
        ("images/a.jpg", "images/masks/a.png"),
        ("../images/a.jpg", "../masks/a.png"),
        ("../images/cam/a.jpg", "../masks/cam/a.png"),
        ("../images/a.jpg", "masks/a.png"),
    ],
)
def test_masks_lie_around_the_folder_of_their_photograph(tmp_path: Path, image: str, mask: str) -> None:
    root = tmp_path / "capture"
    (root / "poses").mkdir(parents=True)
    found = save_mask(root / mask)
    (one,) = masks_of(with_found(root, image))
    assert one is not None
    assert one.resolve() == found.resolve()
    assert masks_of(with_found(root, image.replace("a.", "b.").replace("1.", "2."))) == [None]


def test_relative_paths_lead_to_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_mask(tmp_path / "masks" / "a.png")
    (tmp_path / "poses").mkdir()
    for place, root, image in (("poses", ".", "../images/a.jpg"), (".", ".", "images/a.jpg"), (".", "poses", "a.jpg")):
        monkeypatch.chdir(tmp_path / place)
        (one,) = masks_of(with_found(Path(root), image))
        assert (one is not None) == (root == "."), image


def test_the_masks_nearest_to_the_photographs_are_taken(tmp_path: Path) -> None:
    """Those of undistorted photographs, not those of the photographs that they were made of."""
    for name in ("masks/a.png", "dense/masks/a.png"):
        save_mask(tmp_path / name)
    assert masks_of(with_found(tmp_path, "dense/images/a.jpg")) == [tmp_path / "dense/masks/a.png"]
    assert masks_of(with_found(tmp_path, "images/a.jpg")) == [tmp_path / "masks/a.png"]


def test_names_in_two_folders_are_told_apart_there_too(tmp_path: Path) -> None:
    save_mask(tmp_path / "dense" / "masks" / "b" / "x.png")
    found = masks_of(with_found(tmp_path, "dense/a/y.jpg", "dense/b/x.jpg"))
    assert found == [None, tmp_path / "dense/masks/b/x.png"]


def test_masks_that_fit_no_name_are_told_wherever_they_lie(tmp_path: Path) -> None:
    save_mask(tmp_path / "dense" / "masks" / "other.png")
    source = with_found(tmp_path, "dense/images/a.jpg")
    assert [str(one) for one in source.found] == [
        "1 images in dense/masks: not used, none has the name of a photograph"
    ]


def test_a_capture_below_colmap_is_trained_with_its_masks(tmp_path: Path) -> None:
    write_colmap(tmp_path / "colmap", views=3)
    for index in range(3):
        save_mask(tmp_path / "colmap" / "masks" / f"image_{index:03d}.png")
    capture = load_capture(tmp_path)
    assert [str(one).partition(":")[0] for one in capture.found] == ["masks of 3 of 3 views (masks)"]


@pytest.mark.parametrize("name", ["{}.png.mask.png", "{}.mask.png"])
def test_mask_layers_of_realitycapture_are_told_as_not_used(tmp_path: Path, name: str) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    for index in range(2):
        save_mask(tmp_path / "images" / name.format(f"{index:04d}"))
    capture = load_capture(tmp_path)
    (warning,) = capture.warnings
    assert warning.startswith("2 images ….mask.png beside the photographs: not used, programs disagree")
    assert capture.images.weights is None


def named_masks(path: Path, name: str) -> None:
    """Write a capture whose frames call their masks ``name``, in folders that are not looked into otherwise."""
    write_transforms(path, INTRINSICS, views=3)
    content = json.loads((path / "transforms.json").read_text())
    for index, frame in enumerate(content["frames"]):
        save_mask(path / "Person" / f"{index:04d}.png")
        frame["mask_path"] = name.format(f"{index:04d}")
    (path / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["person\\{}.png", "person/{}.PNG", "/home/other/scene/Person/{}.png", "Person/{}.jpg"]
)
def test_named_masks_are_found_as_photographs_are(tmp_path: Path, name: str) -> None:
    named_masks(tmp_path, name)
    capture = load_capture(tmp_path)
    assert capture.images.weights is not None
    assert all(capture.images.weights[view] is not None for view in range(3))
    (warning,) = capture.warnings
    assert warning.startswith("3 of 3 masks lie under other names than the capture gives them, such as ")


def test_a_photograph_is_not_taken_for_a_mask_of_its_name(tmp_path: Path) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["mask_path"] = f"/elsewhere/{frame['file_path']}"
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = load_capture(tmp_path)
    assert capture.images.weights is None
    assert [warning.partition(",")[0] for warning in capture.warnings] == [
        "3 of 3 masks that the capture names are not there"
    ]


def test_hidden_files_are_no_masks(tmp_path: Path) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    save_mask(tmp_path / "masks" / "._other.png")
    assert load_capture(tmp_path).warnings == ()
