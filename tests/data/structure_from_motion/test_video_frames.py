"""Frames of a video: where a stream of JPEGs is cut, which frame is kept, and what is said where it fails."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageFilter

from splatopt.core.checks import InputError
from splatopt.data.structure_from_motion.video_frames import (
    CANDIDATES,
    read_shape,
    sharpest_of_each,
    sharpness,
    split_jpegs,
    write_frames,
)

SHARP = (3, 5, 13, 19, 20)
"""Frames that are not blurred: of each five that follow each other one."""


def frame(number, size=(96, 64), blurred=True):
    """A JPEG whose first pixels say its number."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2 if blurred else 0.3))
    image.paste((number * 8,) * 3, (0, 0, 16, 16))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def number_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return round(np.asarray(image)[4:12, 4:12].mean() / 8)


@pytest.fixture(scope="module")
def frames():
    return [frame(number, blurred=number not in SHARP) for number in range(25)]


class Dribble(io.BytesIO):
    def read(self, size=-1, /):
        return super().read(min(size, 7))


@pytest.mark.parametrize("stream", [io.BytesIO, Dribble])
def test_a_stream_is_cut_between_its_jpegs(frames, stream):
    assert list(split_jpegs(stream(b"".join(frames)).read)) == frames
    assert list(split_jpegs(stream(b"".join(frames[:3])[:-1]).read)) == frames[:2]
    assert list(split_jpegs(stream(b"").read)) == []


def test_an_end_within_a_header_is_none(frames):
    comment = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    odd = frames[0][:2] + comment + frames[0][2:]
    assert list(split_jpegs(io.BytesIO(odd + frames[1]).read)) == [odd, frames[1]]


@pytest.mark.parametrize("other", [b"P6 2 2 255 ............", b"\xff\xd8\xff\xe0\x00\x04ab" + b"\xff\xd8" * 40_000])
def test_something_else_is_refused_or_left(other):
    if other.startswith(b"P6"):
        with pytest.raises(InputError, match="something else than frames"):
            list(split_jpegs(io.BytesIO(other).read))
    else:
        assert list(split_jpegs(io.BytesIO(other).read)) == []


def test_blur_takes_sharpness():
    noise = np.random.default_rng(1).integers(0, 255, (48, 64)).astype(np.uint8)
    values = [
        sharpness(np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2)
    ]
    assert values[0] > 4 * values[1] > 16 * values[2] > 0
    assert sharpness(np.full((4, 5), 9, np.uint8)) == 0
    # The Laplacian of one bright pixel: 1, 1, 1, 1 and -4 times its value, the mean being 0.
    dot = np.zeros((5, 5), np.uint8)
    dot[2, 2] = 10
    assert sharpness(dot) == pytest.approx(20 * 100 / 25)


def test_of_each_five_the_sharpest_is_kept(frames):
    seen = []
    kept = [number_of(one) for one in sharpest_of_each(iter(frames), 5, seen.append)]
    assert (kept, seen) == (list(SHARP), list(range(1, 26)))
    # What is left at the end is a frame of its own where it is more than half of a stretch.
    assert [number_of(one) for one in sharpest_of_each(iter(frames[:8]), 5, seen.append)] == [3, 5]
    assert [number_of(one) for one in sharpest_of_each(iter(frames[:7]), 5, seen.append)] == [3]
    assert [number_of(one) for one in sharpest_of_each(iter(frames[:2]), 5, seen.append)] == [0]
    assert len(list(sharpest_of_each(iter(frames), 1, seen.append))) == 25


# ---------------------------------------------------------------------- with programs that only look like ffmpeg


@pytest.fixture
def programs(tmp_path, monkeypatch, frames):
    """A folder that is the search path, with an ffprobe that says what ``shape.json`` holds and an ffmpeg."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "stream").write_bytes(b"".join(frames))
    for name, body in {
        "ffprobe": f'echo "$@" >> {folder}/asked\ncat {folder}/shape.json',
        "ffmpeg": f'echo "$@" > {folder}/told\ncat {folder}/stream',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def shape(folder, duration="10.0", rate="30/1", **more):
    values = {"format": {"duration": duration}, "streams": [{"avg_frame_rate": rate}]} | more
    (folder / "shape.json").write_text(json.dumps(values))


def test_frames_are_written_whole_with_progress(programs, tmp_path):
    video, seen = tmp_path / "-a video.mp4", []
    video.touch()
    shape(programs)
    write_frames(video, tmp_path / "frames", 5, tmp_path / "log", lambda *count: seen.append(count))
    written = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in written] == [f"frame_{place:05d}.jpg" for place in range(5)]
    assert [number_of(path.read_bytes()) for path in written] == list(SHARP)
    assert seen == [(done, 25) for done in range(1, 26)]
    told = (programs / "told").read_text()
    assert f"-i file:{video}" in told
    assert "fps=2.500000000" in told
    assert CANDIDATES == 5


@pytest.mark.parametrize(("frames_asked", "rate", "kept"), [(5, "2.5", 5), (25, "2.5", 25), (400, "2.5", 25)])
def test_a_short_video_gives_what_it_has(programs, tmp_path, frames_asked, rate, kept):
    shape(programs, rate=f"{rate}/1")
    write_frames(tmp_path / "v.mp4", tmp_path / "frames", frames_asked, tmp_path / "log", lambda *count: None)
    assert len(list((tmp_path / "frames").iterdir())) == kept
    assert f"fps={float(rate):.9f}" in (programs / "told").read_text()


def test_a_length_that_the_file_does_not_say_is_that_of_its_last_packet(programs, tmp_path):
    shape(programs, duration="N/A", packets=[{"pts_time": "3.5"}, {"pts_time": "2.0"}, {}])
    assert read_shape(tmp_path / "v.webm").seconds == 3.5
    shape(programs, duration="N/A")
    with pytest.raises(InputError, match="does not say how long it is"):
        read_shape(tmp_path / "v.webm")
    shape(programs, rate="0/0")
    assert read_shape(tmp_path / "v.mp4").rate == 30


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "ffprobe",
            "echo Invalid data found >&2; exit 1",
            "cannot be read as a video: ffprobe says Invalid data found",
        ),
        ("ffprobe", "echo '[1]'", "cannot be read as a video"),
        ("ffprobe", "echo '{\"streams\": []}'", "holds no video"),
        ("ffmpeg", "echo broken codec >&2; exit 1", "ffmpeg says broken codec"),
        ("ffmpeg", "true", "ffmpeg says nothing"),
        ("ffmpeg", "echo P6", "something else than frames"),
    ],
)
def test_what_fails_is_said_and_leaves_nothing(programs, tmp_path, name, body, message):
    shape(programs)
    (programs / name).write_text(f"#!/bin/sh\n{body}\n")
    with pytest.raises(InputError, match=message):
        write_frames(tmp_path / "v.mp4", tmp_path / "frames", 5, tmp_path / "log", lambda *count: None)
    assert not [path for path in tmp_path.iterdir() if "frames" in path.name]


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
def test_without_ffmpeg_a_sentence_says_so(programs, tmp_path, monkeypatch, name):
    shape(programs)
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda asked: None if asked == name else found(asked))
    with pytest.raises(InputError, match=f"^{name} is not on the search path, .*install ffmpeg"):
        write_frames(tmp_path / "v.mp4", tmp_path / "frames", 5, tmp_path / "log", lambda *count: None)


# ---------------------------------------------------------------------- with the real one


MIDDLE = (2, 7, 12, 17, 22)
"""Sharp frames that stay in their stretch where a frame more or less is decoded."""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of 25 frames, one of five sharp, which say that they are to be turned by a quarter."""
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg and ffprobe are not on the search path")
    folder = tmp_path_factory.mktemp("video")
    for number in range(25):
        (folder / f"{number:03d}.jpg").write_bytes(frame(number, (192, 128), number not in MIDDLE))
    plain, turned = folder / "plain.mp4", folder / "turned.mp4"
    command = ["ffmpeg", "-v", "error", "-framerate", "12.5", "-i", str(folder / "%03d.jpg")]
    subprocess.run([*command, "-pix_fmt", "yuv420p", "-crf", "10", str(plain)], check=True, stdin=subprocess.DEVNULL)
    turn = ["-metadata:s:v:0", "rotate=90", "-c", "copy", str(turned)]
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(plain), *turn], check=True, stdin=subprocess.DEVNULL)
    return plain


def test_ffmpeg_gives_the_sharp_frames(video, tmp_path):
    found = read_shape(video)
    assert found.seconds == pytest.approx(2, abs=0.05)
    assert found.rate == pytest.approx(12.5, abs=0.1)
    write_frames(video, tmp_path / "frames", 5, tmp_path / "log", lambda *count: None)
    written = sorted((tmp_path / "frames").iterdir())
    assert [number_of(path.read_bytes()) for path in written] == list(MIDDLE)
    assert {Image.open(path).size for path in written} == {(192, 128)}


def test_ffmpeg_turns_frames_as_the_video_says(video, tmp_path):
    probe = ["ffprobe", "-v", "error", "-show_entries", "stream_tags=rotate:stream_side_data=rotation"]
    said = subprocess.run([*probe, str(video.with_name("turned.mp4"))], capture_output=True, text=True, check=True)
    if "90" not in said.stdout:
        pytest.skip("this ffmpeg writes no turn into a video")
    write_frames(video.with_name("turned.mp4"), tmp_path / "frames", 5, tmp_path / "log", lambda *count: None)
    assert {Image.open(path).size for path in (tmp_path / "frames").iterdir()} == {(128, 192)}
