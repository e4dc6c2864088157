"""Fingerprints: the same for the same thing wherever it lies, another for anything that a run would notice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from splatopt.data import Capture, load_capture, make_capture
from splatopt.data.fingerprint import fingerprint_capture, fingerprint_image, fingerprint_mesh
from splatopt.data.mesh import make_mesh
from splatopt.runs.trained_on import difference


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_capture(tmp_path_factory.mktemp("capture") / "toy", seed=0, views=10, width=24, height=16, points=40)


@pytest.fixture(scope="module")
def capture(folder: Path) -> Capture:
    return load_capture(folder)


def with_camera(capture: Capture, index: int, **changes) -> Capture:
    cameras = list(capture.cameras)
    cameras[index] = replace(cameras[index], **changes)
    return replace(capture, cameras=tuple(cameras))


def with_pose(capture: Capture, index: int, row: int, column: int, by: float) -> Capture:
    pose = capture.cameras[index].world_to_camera.clone()
    pose[row, column] += by
    return with_camera(capture, index, world_to_camera=pose)


def test_a_moved_and_renamed_folder_has_the_same_fingerprint(folder: Path, capture: Capture, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint_capture(load_capture(moved)) == fingerprint_capture(capture)


def test_the_fingerprint_of_a_capture_is_what_it_was_on_any_machine(capture: Capture) -> None:
    # Made here from numbers that are exact everywhere; a change of these texts parts all runs from their captures.
    exact = torch.eye(4, dtype=torch.float64)
    exact[:3, 3] = torch.tensor([0.5, -0.25, 4.0])
    cameras = tuple(
        replace(camera, world_to_camera=exact, fx=30.5, fy=30.5, cx=12.0, cy=8.0) for camera in capture.cameras
    )
    found = fingerprint_capture(replace(capture, cameras=cameras))
    assert found["views"] == "10 views of 24x16"
    assert found["split"] == "every-8th-test (8 training and 2 test views)"
    assert found["points"] == "40"
    assert found["kind"] == "a capture"
    assert {name: found[name][:16] for name in ("names", "intrinsics", "poses", "held out")} == {
        "names": "ccd30b61a6d6b984",
        "intrinsics": "cb588b18bdb8eaef",
        "poses": "383721ff5350a71e",
        "held out": "13f7576bb16f52aa",
    }


@pytest.mark.parametrize("unit", [1e-6, 1.0, 4.0, 5e6])
def test_the_last_bits_of_cameras_do_not_count(capture: Capture, unit: float) -> None:
    generator = np.random.default_rng(0)
    cameras, others = [], []
    for camera in capture.cameras:
        pose = camera.world_to_camera.clone()
        pose[:3, 3] *= unit / pose[:3, 3].abs().max()  # the largest entry is the unit itself
        noisy = pose * (1 + 3e-16 * torch.from_numpy(generator.integers(-2, 3, (4, 4))))
        noisy[:3, :3] += 1e-16 * torch.from_numpy(generator.integers(-2, 3, (3, 3)))
        cameras.append(replace(camera, world_to_camera=pose))
        others.append(replace(camera, world_to_camera=noisy, fx=camera.fx * (1 + 4e-16), cx=camera.cx * (1 - 4e-16)))
    kept = fingerprint_capture(replace(capture, cameras=tuple(cameras)))
    assert fingerprint_capture(replace(capture, cameras=tuple(others))) == kept


def differing(capture: Capture, other: Capture) -> str | None:
    return difference(fingerprint_capture(capture), fingerprint_capture(other))


def test_each_change_of_a_capture_is_named(capture: Capture) -> None:
    assert differing(capture, capture) is None
    first = capture.cameras[0]
    fewer = replace(capture, cameras=capture.cameras[:9])
    assert differing(capture, fewer) == ("the capture has 9 views of 24x16, the run was trained on 10 views of 24x16")
    larger = with_camera(capture, 0, width=25)
    assert "10 views of 2 sizes from 24x16 to 25x16" in differing(capture, larger)
    assert "other names" in differing(capture, with_camera(capture, 3, name="another.png"))
    swapped = replace(capture, cameras=(capture.cameras[1], first, *capture.cameras[2:]))
    assert "another order" in differing(capture, swapped)
    for changes in ({"fx": first.fx + 1e-4}, {"fy": first.fy * 1.001}, {"cx": first.cx + 0.5}, {"cy": first.cy + 0.5}):
        assert "focal lengths" in differing(capture, with_camera(capture, 0, **changes))
    for row in range(3):
        for column in range(4):
            assert "other poses" in differing(capture, with_pose(capture, 7, row, column, 1e-6))
    split = replace(capture.split, name="blender")
    assert "its split is blender (8 training and 2 test views), the run's was every-8th-test" in differing(
        capture, replace(capture, split=split)
    )
    split = replace(capture.split, train=(0, 2, 3, 4, 5, 6, 7, 9), test=(1, 8))
    assert differing(capture, replace(capture, split=split)) == "other views are held out than in the run"
    assert differing(capture, replace(capture, points=None)) == "the capture has 0 points, the run began with 40"


def test_parts_apart_and_parts_that_an_older_run_lacks_are_not_compared(capture: Capture) -> None:
    kept, found = fingerprint_capture(capture), fingerprint_capture(replace(capture, points=None))
    assert difference(kept, found, apart=("points",)) is None
    del kept["points"]
    assert difference(kept, found) is None


def test_images_are_told_apart_by_size_and_pixels() -> None:
    image = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    kept = fingerprint_image(image)
    assert kept["size"] == "7x5"
    assert difference(kept, fingerprint_image(image.clone())) is None
    assert "the image is 5x7 pixels, the run was fitted to 7x5" in difference(
        kept, fingerprint_image(image.transpose(0, 1))
    )
    other = image.clone()
    other[4, 6, 2] = (other[4, 6, 2] * 255 + 1) % 256 / 255
    assert "other pixels" in difference(kept, fingerprint_image(other))


def test_meshes_are_told_apart_by_what_lies_in_the_file() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    kept = fingerprint_mesh(make_mesh(vertices, faces, True))
    assert kept["mesh"] == "4 vertices and 4 faces"
    assert difference(kept, fingerprint_mesh(make_mesh(vertices.clone(), faces, True))) is None
    assert "4 vertices and 3 faces" in difference(kept, fingerprint_mesh(make_mesh(vertices, faces[:3], False)))
    for changed in (make_mesh(2 * vertices, faces, True), make_mesh(vertices + 1, faces, True)):
        assert "other vertices" in difference(kept, fingerprint_mesh(changed))
    assert "other vertices" in difference(kept, fingerprint_mesh(make_mesh(vertices, faces.roll(1, 0), True)))


def test_an_image_is_no_capture(capture: Capture) -> None:
    kept = fingerprint_capture(capture)
    assert difference(kept, fingerprint_image(torch.zeros(2, 2, 3))) == "it is an image and not a capture"
