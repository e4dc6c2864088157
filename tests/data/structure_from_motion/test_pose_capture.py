"""From photographs to a capture, COLMAP's stages aside: what is kept, refused, reported and put in place."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import numpy as np
import pycolmap
import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.commands import poses as command
from splatopt.commands.poses import report_lines
from splatopt.core.checks import InputError
from splatopt.core.files import locked
from splatopt.data import load_capture
from splatopt.data.colmap_text import write_model, write_points
from splatopt.data.procedural import orbit_pose
from splatopt.data.structure_from_motion import capture as posing
from splatopt.data.structure_from_motion.capture import PoseOptions, pose_images, work_folder
from splatopt.data.structure_from_motion.stages import FoundModel, Job
from splatopt.data.structure_from_motion.worker import work_in_process

SIZE = (40, 30)


class Stages:
    """Stands for COLMAP's: gives all but the last ``without`` photographs a pose on an orbit."""

    def __init__(self, without=0, others=()):
        self.without, self.others, self.jobs = without, others, []

    def __call__(self, folder, tell):
        job = Job.read(folder / "job.json")
        self.jobs.append(job)
        tell("features", 0, len(job.names))
        names = list(job.names.values())[: len(job.names) - self.without]
        models = [
            FoundModel(tuple(names), 5, 0.5, 1),
            *(FoundModel(("x",) * count, 1, 1.0, 1) for count in self.others),
        ]
        (folder / "model").mkdir(exist_ok=True)
        (folder / "text").mkdir(exist_ok=True)
        plain = [f"{place}" for place in range(len(names))]
        write_model(folder / "text", plain, [orbit_pose(0.3 * place, 0.4) for place in range(len(names))], 50.0, SIZE)
        write_points(folder / "text", np.arange(15.0).reshape(5, 3), np.zeros((5, 3), np.uint8))
        model = pycolmap.Reconstruction(folder / "text")
        for image in model.images.values():
            image.name = names[int(image.name)]
        model.write(folder / "model")
        (folder / "models.json").write_text(json.dumps([asdict(one) for one in models if one.names]))


def photograph(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (shade, 90, 200)).save(path)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "trip"
    for place in range(9):
        photograph(folder / f"IMG_{place + 3}.jpg", 20 * place)
    return folder


def test_a_capture_is_written_that_is_read(photographs, tmp_path):
    stages, out, seen = Stages(without=1), tmp_path / "out" / "trip", []
    found = pose_images(photographs, out, work=stages, tell=lambda *count: seen.append(count))
    names = [f"IMG_{place}.jpg" for place in range(3, 12)]
    assert (found.folder, found.images, found.model.names) == (out, 9, tuple(names[:-1]))
    assert (found.without_pose, found.unreadable, found.other_models) == (("IMG_11.jpg",), (), ())
    assert seen == [("features", 0, 9)]
    read = load_capture(out)
    assert (read.kind, [camera.name for camera in read.cameras]) == ("colmap", sorted(names[:-1]))
    assert sorted(path.name for path in (out / "images").iterdir()) == sorted(names)
    assert [path.name for path in out.parent.iterdir()] == ["trip"]
    (job,) = stages.jobs
    assert list(job.names.values()) == names
    assert job.cameras == (tuple(job.names),)
    assert (len(job.pairs), job.max_side, job.seed, job.threads) == (36, 1600, 0, len(os.sched_getaffinity(0)))


def test_masks_are_taken_along(photographs, tmp_path):
    for place in range(3, 12):
        mask = photographs / "masks" / f"IMG_{place}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.new("L", SIZE, 255 if place % 2 else 0).save(mask)
    found = pose_images(photographs, tmp_path / "out", work=Stages())
    assert (found.images, found.masks) == (9, 9)
    assert "masks: 9 files taken along" in "\n".join(report_lines(found))
    read = load_capture(tmp_path / "out")
    seen = [read.images.seen(view) for view in range(len(read.cameras))]
    assert [bool(one.all()) for one in seen if one is not None] == [int(c.name[4:-4]) % 2 == 1 for c in read.cameras]
    assert pose_images(photographs, tmp_path / "out", work=Stages()) == found


def test_photographs_are_linked_and_stay(photographs, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in photographs.iterdir()}
    pose_images(photographs, tmp_path / "linked", work=Stages())
    assert (tmp_path / "linked" / "images" / "IMG_3.jpg").samefile(photographs / "IMG_3.jpg")

    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    pose_images(photographs, tmp_path / "copied", work=Stages())
    copy = tmp_path / "copied" / "images" / "IMG_3.jpg"
    assert not copy.samefile(photographs / "IMG_3.jpg")
    assert copy.read_bytes() == before["IMG_3.jpg"]
    assert {path.name: path.read_bytes() for path in photographs.iterdir()} == before


def test_names_that_lists_and_models_cannot_hold(tmp_path):
    folder = tmp_path / "trip"
    for name in ("a b.jpg", "ü/2.jpg", "ü/ 3\n.jpg"):
        photograph(folder / name)
    odd = os.fsdecode(b"4\xe9.jpg")
    (folder / odd).write_bytes((folder / "a b.jpg").read_bytes())
    os.rename(folder / "a b.jpg", folder / "ü" / "a b.jpg")
    os.rename(folder / odd, folder / "ü" / odd)
    stages = Stages()
    found = pose_images(folder, tmp_path / "out", work=stages)
    (job,) = stages.jobs
    assert [name.isascii() and " " not in name for name in job.names] == [True] * 4
    assert sorted(found.model.names) == ["ü/ 3\n.jpg", "ü/2.jpg", "ü/4%E9.jpg", "ü/a b.jpg"]
    assert len(load_capture(tmp_path / "out").cameras) == 4


def test_colmap_sees_the_pixels_that_we_see(photographs, tmp_path):
    Image.fromarray(np.full((30, 40), 7000, np.uint16)).save(photographs / "deep.png")
    seen = {}

    def look(folder, tell):
        job = Job.read(folder / "job.json")
        for file, name in job.names.items():
            seen[name] = (np.asarray(Image.open(folder / "images" / file)), (folder / "images" / file).is_symlink())
        Stages()(folder, tell)

    pose_images(photographs, tmp_path / "out", work=look)
    assert seen["IMG_3.jpg"][1]
    pixels, linked = seen["deep.png"]
    assert (pixels.dtype, pixels.shape, set(pixels.ravel().tolist()), linked) == (np.uint8, (30, 40, 3), {27}, False)


def test_what_was_finished_is_told_again_and_not_done_again(photographs, tmp_path):
    out = tmp_path / "out"
    first = pose_images(photographs, out, work=Stages(without=2, others=(3,)))

    def never(folder, tell):
        raise AssertionError("everything is there")

    work_folder(out).mkdir()  # what a kill between the capture and the end leaves
    assert pose_images(photographs, out, work=never) == first
    assert pose_images(photographs, out, PoseOptions(threads=1), work=never) == first
    assert not work_folder(out).exists()
    for other in (PoseOptions(seed=1), PoseOptions(max_side=640)):
        with pytest.raises(InputError, match="holds poses of other photographs, or with other options; name another"):
            pose_images(photographs, out, other, work=never)
    photograph(photographs / "IMG_99.jpg")
    with pytest.raises(InputError, match="holds poses of other photographs"):
        pose_images(photographs, out, work=never)
    (out / "poses.json").write_text('{"asked": {}')
    with pytest.raises(InputError, match=r"poses\.json"):
        pose_images(photographs, out, work=never)


def test_what_was_ended_goes_on(photographs, tmp_path):
    out, hidden = tmp_path / "out", work_folder(tmp_path / "out")

    def end_early(folder, tell):
        (folder / "database.db").write_text("features")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pose_images(photographs, out, work=end_early)
    assert not out.exists()

    def go_on(folder, tell):
        assert (folder / "database.db").read_text() == "features"
        Stages()(folder, tell)
        raise KeyboardInterrupt  # between the models and the capture

    with pytest.raises(KeyboardInterrupt):
        pose_images(photographs, out, work=go_on)
    assert not out.exists()
    stages = Stages()
    pose_images(photographs, out, work=stages)
    assert (stages.jobs, out.is_dir(), hidden.exists()) == ([], True, False)


@pytest.mark.parametrize("change", ["another photograph", "another option", "a damaged mark"])
def test_another_task_begins_anew(photographs, tmp_path, change):
    out, hidden = tmp_path / "out", work_folder(tmp_path / "out")

    def end_early(folder, tell):
        (folder / "database.db").write_text("features of other photographs")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pose_images(photographs, out, work=end_early)
    options = PoseOptions()
    if change == "another photograph":
        photograph(photographs / "IMG_5.jpg", 255)
    elif change == "another option":
        options = PoseOptions(max_side=640)
    else:
        (hidden / "poses.json").write_text("{")

    def anew(folder, tell):
        assert not (folder / "database.db").exists()
        Stages()(folder, tell)

    assert pose_images(photographs, out, options, work=anew).images == 9


def test_another_process_is_not_disturbed(photographs, tmp_path):
    hidden = work_folder(tmp_path / "out")
    hidden.mkdir()
    with locked(hidden, "it"), pytest.raises(InputError, match="another process is at work on the poses of"):
        pose_images(photographs, tmp_path / "out", work=Stages())


@pytest.mark.parametrize("held", ["file", "folder"])
def test_a_place_that_is_taken_is_refused(photographs, tmp_path, held):
    out = tmp_path / "out"
    if held == "file":
        out.write_text("mine")
    else:
        photograph(out / "mine.jpg")
    with pytest.raises(InputError, match=r"out holds something else; name another folder with --out"):
        pose_images(photographs, out, work=Stages())
    assert out.is_file() or [path.name for path in out.iterdir()] == ["mine.jpg"]
    assert not work_folder(out).exists()


@pytest.mark.parametrize("options", [{"frames": 2}, {"max_side": 32}, {"seed": -1}, {"threads": 2000}])
def test_options_are_checked(options):
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(InputError, match=f"^--{name} must be at least"):
        PoseOptions(**options)


def test_too_few_and_unjoined_photographs_are_refused(photographs, tmp_path):
    with pytest.raises(InputError, match="nothing at"):
        pose_images(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no photographs in"):
        pose_images(tmp_path / "empty", tmp_path / "out")
    few = tmp_path / "few"
    photograph(few / "1.jpg")
    (few / "2.jpg").write_bytes(b"no photograph")
    with pytest.raises(
        InputError, match="holds 1 photographs that can be read; 1 more cannot be read, such as '2.jpg'"
    ):
        pose_images(few, tmp_path / "out")
    assert not work_folder(tmp_path / "out").exists()
    for without in (7, 9):
        with pytest.raises(InputError, match="no 3 of the 9 photographs of .* could be joined; take sharp ones"):
            pose_images(photographs, tmp_path / "out", work=Stages(without=without))
    assert not (tmp_path / "out").exists()


def test_frames_of_a_video_are_taken_once(photographs, tmp_path, monkeypatch):
    video, taken = tmp_path / "walk.mp4", []
    video.write_bytes(b"a video")

    def take(source, folder, frames, log, watch):
        taken.append((source, frames))
        watch(1, 4)
        for place in range(4):
            photograph(folder / f"frame_{place:05d}.jpg", place)

    monkeypatch.setattr(posing, "write_frames", take)

    def end_early(folder, tell):
        raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        pose_images(video, tmp_path / "out", work=end_early, tell=lambda *count: seen.append(count))
    found = pose_images(video, tmp_path / "out", work=Stages())
    assert (taken, seen, found.images) == ([(video, 150)], [("frames", 1, 4)], 4)
    assert len(load_capture(tmp_path / "out").cameras) == 4
    with pytest.raises(InputError, match="poses of other photographs, or with other options"):
        pose_images(video, tmp_path / "out", PoseOptions(frames=20), work=Stages())


# ---------------------------------------------------------------------- the command


def test_the_command_reports_and_says_what_is_next(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photographs / "later.heic").write_bytes(b"")
    stages = Stages(without=6, others=(4, 3))
    monkeypatch.setattr(
        command, "pose_images", lambda source, out, options, tell: pose_images(source, out, options, tell, stages)
    )
    assert main(["poses", "trip", "--threads", "2"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == "3 of 9 photographs have a pose: 5 points, mean reprojection error 0.50 pixels, 1 camera"
    assert lines[1] == "without a pose: 6: IMG_6.jpg, IMG_7.jpg, IMG_8.jpg, IMG_9.jpg, IMG_10.jpg, and 1 more"
    assert lines[2].startswith("what helps: more photographs in between")
    assert lines[3].startswith("left aside: 2 other models, of 4, 3 photographs")
    assert lines[4] == "not read: 1: later.heic; convert them to JPEG, or replace them"
    assert lines[5] == "capture: captures/trip"
    assert lines[6].endswith("train captures/trip --out runs/trip")
    assert "features 0/9" in told.err
    assert stages.jobs[0].threads == 2
    # Where all is well nothing is said of what is not.
    stages.without, stages.others = 0, ()
    (photographs / "later.heic").unlink()
    assert main(["poses", "trip", "--out", "other"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "9 of 9 photographs have a pose",
        "capture",
        "next",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["poses"], "PHOTOS_OR_VIDEO is missing"),
        (["poses", "nowhere"], "there is nothing at nowhere"),
        (["poses", "trip", "--frames", "1"], "--frames must be at least 3"),
        (["poses", "trip", "--out", "taken"], "taken holds something else"),
    ],
)
def test_the_command_refuses_in_a_sentence(photographs, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"splatopt: {message}")
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_a_worker_that_breaks_down_is_named_with_its_words(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(InputError, match=r"COLMAP ended with code 1: .*KeyError.*; the same command goes on") as raised:
        work_in_process(tmp_path, lambda *count: None)
    assert "colmap.log" in str(raised.value)
