from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.data import Capture, load_capture, make_capture


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return load_capture(make_capture(tmp_path_factory.mktemp("synthetic") / "still", views=9, width=96, height=72))


def test_goes_through_the_ordinary_loader(capture: Capture) -> None:
    assert capture.kind == "procedural"
    assert capture.warnings == ()
    assert (len(capture.split.train), len(capture.split.test)) == (7, 2)
    assert {(camera.width, camera.height) for camera in capture.cameras} == {(96, 72)}
    assert capture.points is not None
    assert len(capture.points) == 4000
    assert capture.extent == pytest.approx(1.1 * 3.5, rel=0.15)
    model = pycolmap.Reconstruction(str(capture.path / "sparse" / "0"))
    assert (model.num_reg_images(), model.num_points3D()) == (9, 4000)


def test_cameras_look_at_the_table(capture: Capture) -> None:
    for camera in capture.cameras:
        x, y, z, _ = camera.world_to_camera @ torch.tensor([0, 0, 0.32, 1], dtype=torch.float64)
        np.testing.assert_allclose([x, y, z], [0, 0, 3.8], atol=1e-9)
        assert float(camera.center[2]) > 0.5
        up = camera.world_to_camera[:3, :3] @ torch.tensor([0, 0, 1], dtype=torch.float64)
        assert float(up[1]) < 0


def test_pictures_have_texture_and_light(capture: Capture) -> None:
    for index in range(len(capture.cameras)):
        image = capture.images[index].double()
        assert 60 < float(image.mean()) < 180
        assert float(image.std()) > 25
        assert float((image == 255).double().mean()) < 0.05


def test_points_have_the_colours_that_cameras_see(capture: Capture) -> None:
    """Points projected into a picture fall on pixels of their colour, most of them unoccluded."""
    assert capture.points is not None
    camera = capture.cameras[0]
    pose = camera.world_to_camera
    local = capture.points.positions[:400].double() @ pose[:3, :3].T + pose[:3, 3]
    columns = (camera.fx * local[:, 0] / local[:, 2] + camera.cx).floor().long()
    rows = (camera.fy * local[:, 1] / local[:, 2] + camera.cy).floor().long()
    inside = (columns >= 0) & (columns < 96) & (rows >= 0) & (rows < 72) & (local[:, 2] > 0)
    seen = capture.images[0][rows[inside], columns[inside]].double()
    error = (seen - capture.points.colors[:400][inside].double()).abs().mean(dim=1)
    assert float(inside.double().mean()) > 0.9
    assert float(error.median()) < 12


def test_the_seed_decides(tmp_path: Path) -> None:
    folders = [make_capture(tmp_path / name, seed, 2, 32, 24) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    contents = [{str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*.*"))} for f in folders]
    assert contents[0] == contents[1]
    assert contents[0]["images/view_000.png"] != contents[2]["images/view_000.png"]
    assert {"images/view_001.png", "sparse/0/points3D.txt", "procedural.json"} <= set(contents[0])


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is not empty; name a new folder"):
        make_capture(full, views=2, width=8, height=8)
    with pytest.raises(InputError, match="exists and is not empty"):
        make_capture(full / "mine.txt", views=2, width=8, height=8)
    assert [file.name for file in full.iterdir()] == ["mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(load_capture(make_capture(empty, views=2, width=8, height=8)).cameras) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "full"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("splatopt.data.procedural.write_points", fail)
    with pytest.raises(OSError, match="disk full"):
        make_capture(tmp_path / "new", views=2, width=8, height=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"views": 1}, {"width": 0}, {"height": 0}, {"points": -1}])
def test_numbers_out_of_range(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a capture needs at least"):
        make_capture(tmp_path / "new", **change)


def test_no_points(tmp_path: Path) -> None:
    points = load_capture(make_capture(tmp_path / "new", views=2, width=8, height=8, points=0)).points
    assert points is not None
    assert len(points) == 0
