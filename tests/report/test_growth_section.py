"""What a run's page shows of its density strategy's edits, from a file that may be absent or damaged."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from data.capture_cases import write_colmap
from report.test_scene_page import NASTY, Elements, picture, write_run
from splatopt.core.camera import Camera
from splatopt.data import load_capture
from splatopt.report import edits as edits_file
from splatopt.report.edits import Edit, Edits, told_edits
from splatopt.report.growth import growth_section, seen_at
from splatopt.report.pictures import ViewPictures
from splatopt.report.scene_page import write_report


def camera(**changes: float) -> Camera:
    """At (0, 0, -2), looking along z, at the size of the tests' pictures."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 2.0
    return Camera(pose, **({"fx": 4.0, "fy": 5.0, "cx": 4.0, "cy": 3.0, "width": 8, "height": 6} | changes))


def line(step: int, added: int, removed: int, gaussians: int, **more: object) -> str:
    counts = {"step": step, "added": added, "removed": removed, "gaussians": gaussians}
    return json.dumps({**counts, "added_at": [], "removed_at": []} | more) + "\n"


def views(name: str = "a view", seen_by: Camera | None = None) -> list[ViewPictures]:
    return [ViewPictures(name, picture(9), None, picture(8), seen_by)]


def test_positions_are_drawn_where_the_camera_sees_them(tmp_path: Path):
    run = write_run(tmp_path / "run")
    added = [[0.5, 0.5, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, -3.0], [9.0, 0.0, 0.0]]
    text = line(10, 4, 0, 1238, added_at=added) + line(20, 0, 5, 1233, removed_at=[[-0.5, 0.2, 0.0]])
    (run / "density.jsonl").write_text(text)
    page = write_report(run, views(seen_by=camera())).read_text()
    # x = 4 X/Z + 4, y = 5 Y/Z + 3 with Z = z + 2; the third stands behind the camera, the fourth outside its image.
    drawing = re.search(r'<svg class="places".*?</svg>', page)[0]
    assert re.findall(r'<circle class="added" cx="([\d.]+)" cy="([\d.]+)"', drawing) == [("5.0", "4.2"), ("5.0", "3.0")]
    x, y = re.search(r'<path class="removed" d="M([\d.]+) ([\d.]+)L', drawing).groups()
    assert (float(x), float(y)) == pytest.approx((4 - 4 * 0.25, 3 + 5 * 0.1), abs=0.1)
    assert "Places of 2 of 4 added and 1 of 1 removed Gaussians" in page
    assert "added, 4 in all" in page
    assert "removed, 5 in all" in page


def test_the_count_is_a_staircase_from_the_start_to_the_last_logged_step():
    edits = Edits((Edit(10, 30, 10, 120), Edit(20, 0, 20, 100)))
    page = growth_section(edits, [{"step": 5, "gaussians": 100}, {"step": 40, "gaussians": 100}], [])
    chart = re.search(r'aria-label="Gaussians, against steps">.*?</svg>', page)[0]
    points = re.search(r'<polyline class="line" points="([^"]+)"', chart)[1].split()
    x = [float(point.split(",")[0]) for point in points]
    y = [float(point.split(",")[1]) for point in points]
    assert len(points) == 6
    assert [(at - x[0]) / (x[-1] - x[0]) * 40 for at in x] == pytest.approx([0, 10, 10, 20, 20, 40], abs=0.1)
    assert y[0] == y[1] == y[4] == y[5] > y[2] == y[3]  # 100, 120, 100; up is down in an image


def test_a_run_without_a_strategy_has_no_such_part(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert "Growth" not in write_report(run, views(seen_by=camera())).read_text()
    (run / "density.jsonl").write_text("")
    assert "Growth" not in write_report(run, views(seen_by=camera())).read_text()


@pytest.mark.parametrize(
    "damaged",
    [
        "not JSON",
        "[]",
        "{}",
        '{"step": -1, "added": 0, "removed": 0, "gaussians": 1}',
        '{"step": 1, "added": 0, "removed": 0, "gaussians": 1e99}',
        '{"step": 1, "added": 0, "removed": 0, "gaussians": 1, "added_at": [[1, 2]]}',
        '{"step": 1, "added": 0, "removed": 0, "gaussians": 1, "added_at": [["<script>", 2, 3]]}',
        '{"step": 1, "added": 0, "removed": 0, "gaussians": 1, "added_at": [[NaN, 2, 3]]}',
        '{"step": 1, "added": 0, "removed": 0, "gaussians": 1, "removed_at": {"a": 1}}',
        "\x00\xff",
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_left_out_and_counted(tmp_path: Path, damaged: str):
    run = write_run(tmp_path / "run")
    text = line(10, 4, 0, 104, added_at=[[0, 0, 0]]) + damaged + "\n" + line(20, 1, 0, 105)
    (run / "density.jsonl").write_text(text, encoding="latin-1")
    told = told_edits(run / "density.jsonl")
    assert [edit.gaussians for edit in told.edits] == [104, 105]
    page = write_report(run, views(seen_by=camera())).read_text()
    assert "1 of 3 lines of density.jsonl are left out" in page
    assert "<script" not in page
    assert "added, 5 in all" in page


def test_a_line_that_a_kill_cut_short_is_no_damage(tmp_path: Path):
    path = tmp_path / "density.jsonl"
    path.write_text(line(10, 4, 0, 104) + line(20, 1, 0, 105)[:20])
    assert told_edits(path) == Edits((Edit(10, 4, 0, 104),))


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch):
    path = tmp_path / "density.jsonl"
    path.write_text(line(10, 4, 0, 104, added_at=[[0, 0, 0]] * 200) * 5)
    assert {len(edit.added_at) for edit in told_edits(path).edits} == {edits_file.MAX_POSITIONS}
    monkeypatch.setattr(edits_file, "MAX_EDITS", 2)
    assert len(told_edits(path).edits) == 2
    assert told_edits(path).unread == "3 of 5 lines of density.jsonl are left out"
    monkeypatch.setattr(edits_file, "_MAX_BYTES", 100)
    assert told_edits(path).edits == ()
    assert "more than 100" in told_edits(path).unread
    assert "more than 100" in growth_section(told_edits(path), [], [])


def test_a_folder_or_a_pipe_in_its_place_is_said(tmp_path: Path):
    (tmp_path / "density.jsonl").mkdir()
    assert "it is a folder" in told_edits(tmp_path / "density.jsonl").unread


def test_at_most_so_many_positions_are_drawn(tmp_path: Path):
    edits = Edits((Edit(1, 300, 0, 400, added_at=((0.0, 0.0, 0.0),) * 300),))
    page = growth_section(edits, [], views(seen_by=camera()), max_drawn=40)
    assert page.count('<circle class="added"') == 40 + 1  # one of them in the legend
    assert "Places of 40 (of 300) of 300 added" in page


def test_the_view_that_sees_most_is_taken_and_its_name_escaped():
    edits = Edits((Edit(1, 1, 0, 2, added_at=((0.0, 0.0, 0.0),)),))
    away = camera()
    away.world_to_camera[2, 3] = -2.0
    page = growth_section(edits, [], [*views("away", away), *views(NASTY, camera())])
    assert "<script" not in page
    assert "in view &lt;script&gt;" in page
    assert not {"script", "iframe", "object", "form"} & set(Elements(page).tags)


@pytest.mark.parametrize("pictures", [[], views()])
def test_without_a_camera_the_counts_are_shown_alone(pictures):
    page = growth_section(Edits((Edit(1, 1, 0, 2, added_at=((0.0, 0.0, 0.0),)),)), [], pictures)
    assert "Gaussians, against steps" in page
    assert '<svg class="places"' not in page
    assert "With pictures of views, this page shows where they were." in page


def test_positions_of_any_size_are_drawn_nowhere_wrong():
    far = torch.tensor([[1e300, 0, 1e300], [-1e308, 1e308, 1e308], [0, 0, -2.0], [0, 0, 5.0]], dtype=torch.float64)
    seen = seen_at(camera(), far)
    assert seen.isfinite().all()
    assert seen[-1].tolist() == [4.0, 3.0]


def test_a_capture_in_its_own_frame_and_its_training_frame_see_a_point_in_one_place(tmp_path: Path):
    write_colmap(tmp_path / "capture")
    capture = load_capture(tmp_path / "capture")
    local = capture.localised()
    assert not math.isclose(local.frame.unit, 1.0)
    point = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    for own, trained in zip(local.own.cameras, local.cameras, strict=True):
        expected = seen_at(trained, local.frame.to_local(point))
        assert len(expected) == 1
        assert torch.allclose(seen_at(own, point), expected, atol=1e-9)
