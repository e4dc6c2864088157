"""Frames of a video, the sharpest of each stretch of time, through the system's ffmpeg.

ffmpeg decodes the video once, turns frames as the video says, and hands JPEGs over a pipe: so nothing but the frames
that are kept is written, and ffmpeg ends when we do.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from splatopt.core.checks import InputError, cut, short
from splatopt.core.files import new_file, whole_folder

CANDIDATES = 5
"""Frames that are looked at for each that is kept."""

_SIDE = 640
"""Longer side of the grey copy whose sharpness is measured, pixels."""

_MAX_FRAME_BYTES = 64 << 20
_MAX_SECONDS = 7 * 24 * 3600.0
_START, _SCAN, _END = b"\xff\xd8", 0xDA, b"\xff\xd9"


@dataclass(frozen=True)
class VideoShape:
    """What a video says of itself.

    Attributes:
        seconds: How long it is.
        rate: Frames a second, the mean.
    """

    seconds: float
    rate: float


def sharpness(grey: UInt8[np.ndarray, "height width"]) -> float:
    """Return the variance of the Laplacian, the squared unit of ``grey``: small where edges are blurred."""
    return float(ndimage.laplace(grey.astype(np.float32)).var())


def program_named(name: str) -> str:
    """Return where a program of ffmpeg is.

    Raises:
        InputError: It is not on the search path.
    """
    found = shutil.which(name)
    if found is None:
        raise InputError(
            f"{name} is not on the search path, and a video is read through it; install ffmpeg, or give a folder of "
            "photographs"
        )
    return found


def read_shape(video: Path) -> VideoShape:
    """Ask ffprobe how long ``video`` is, and how many frames it has a second.

    Raises:
        InputError: There is no ffprobe, or the file is no video.
    """
    command = [program_named("ffprobe"), "-v", "error", "-select_streams", "v:0", "-of", "json"]
    entries = "stream=avg_frame_rate,duration:format=duration"
    found = _asked([*command, "-show_entries", entries], video)
    streams = found.get("streams")
    if not isinstance(streams, list) or not streams:
        raise InputError(f"{short(video)} holds no video; give a video, or a folder of photographs")
    stream, whole = streams[0], found.get("format", {})
    seconds = _number(whole.get("duration")) or _number(stream.get("duration"))
    if not seconds:
        # Browsers record files without a length: the last packet tells it.
        packets = _asked([*command, "-show_entries", "packet=pts_time"], video).get("packets", [])
        seconds = max((_number(packet.get("pts_time")) for packet in packets), default=0.0)
    if not 0 < seconds < _MAX_SECONDS:
        raise InputError(f"{short(video)} does not say how long it is; write it anew with ffmpeg -i, or give frames")
    over, _, under = str(stream.get("avg_frame_rate", "")).partition("/")
    rate = _number(over) / _number(under or "1") if _number(under or "1") else 0.0
    return VideoShape(seconds, rate if 0 < rate < 1000 else 30.0)


def _asked(command: list[str], video: Path) -> dict:
    """Return what ffprobe answers, an object."""
    result = subprocess.run([*command, _plain(video)], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    try:
        found = json.loads(result.stdout or b"{}")
    except ValueError:
        found = None
    if result.returncode or not isinstance(found, dict):
        raise InputError(f"{short(video)} cannot be read as a video: ffprobe says {_last_line(result.stderr)}")
    return found


def _plain(video: Path) -> str:
    """A path that ffmpeg takes for no option and no address of the network."""
    return f"file:{video.absolute()}"


def _number(text: object) -> float:
    """A number that ffprobe wrote; 0 where it is none."""
    try:
        value = float(str(text))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _last_line(said: bytes) -> str:
    return cut((said.decode(errors="replace").strip().splitlines() or ["nothing"])[-1])


def write_frames(video: Path, folder: Path, frames: int, log: Path, watch: Callable[[int, int], None]) -> None:
    """Write about ``frames`` frames of ``video`` as JPEG, spread over its length; whole or not at all.

    The video is cut into as many equal stretches, of each CANDIDATES frames are looked at, and the sharpest is kept.

    Args:
        video: The file.
        folder: Where to; must not exist.
        frames: How many; fewer where the video has fewer.
        log: Takes what ffmpeg says.
        watch: Called with the frames looked at, and about how many there will be.

    Raises:
        InputError: There is no ffmpeg, or it cannot read the video.
    """
    shape = read_shape(video)
    rate = min(shape.rate, CANDIDATES * frames / shape.seconds)
    expected = max(1, round(rate * shape.seconds))
    # Of a short video each frame is kept.
    window = min(CANDIDATES, max(1, math.ceil(expected / frames)))
    command = [program_named("ffmpeg"), "-nostdin", "-v", "error", "-i", _plain(video), "-map", "0:v:0"]
    command += ["-vf", f"fps={rate:.9f}", "-c:v", "mjpeg", "-q:v", "2", "-f", "image2pipe", "-"]
    with (
        log.open("wb") as said,
        whole_folder(folder, f"the frames of {video}") as partial,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdout is not None  # it is a pipe
        kept = 0
        try:
            for frame in sharpest_of_each(
                split_jpegs(process.stdout.read), window, lambda done: watch(min(done, expected), expected)
            ):
                with new_file(partial / f"frame_{kept:05d}.jpg") as file:
                    file.write(frame)
                kept += 1
        except BaseException:
            process.kill()
            raise
        if process.wait() or not kept:
            raise InputError(f"{short(video)} cannot be read: ffmpeg says {_last_line(log.read_bytes())}")


def sharpest_of_each(frames: Iterator[bytes], window: int, watch: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the sharpest JPEG of every ``window`` that follow each other, the first of equal ones."""
    best: tuple[float, bytes] | None = None
    done = 0
    for done, frame in enumerate(frames, start=1):
        value = sharpness(_small_grey(frame))
        if best is None or value > best[0]:
            best = (value, frame)
        watch(done)
        if done % window == 0:
            yield best[1]
            best = None
    rest = done % window
    if best is not None and (rest == done or 2 * rest > window):
        yield best[1]


def _small_grey(frame: bytes) -> UInt8[np.ndarray, "height width"]:
    with Image.open(io.BytesIO(frame), formats=["JPEG"]) as image:
        image.draft("L", (2 * _SIDE, 2 * _SIDE))
        grey = image.convert("L")
        grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
        return np.asarray(grey)


def split_jpegs(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the JPEGs that follow each other; one that is cut short at the end is left out.

    Args:
        read: Returns at most so many bytes of them, none at the end.

    Raises:
        InputError: Something else comes.
    """
    held = b""
    while True:
        end = _jpeg_end(held)
        if end:
            yield held[:end]
            held = held[end:]
            continue
        more = read(1 << 16)
        if not more:
            return
        held += more
        if not held.startswith(_START[: len(held)]) or len(held) > _MAX_FRAME_BYTES:
            raise InputError("ffmpeg handed over something else than frames as JPEG; is it a whole ffmpeg?")


def _jpeg_end(held: bytes) -> int:
    """Return where the JPEG at the start of ``held`` ends; 0 where that is not there yet.

    Segments before the pixels say their length, and may hold any bytes; among pixels FF D9 is the end and nothing else.
    """
    place = 2
    while place + 4 <= len(held):
        if held[place + 1] == _SCAN:
            found = held.find(_END, place)
            return found + 2 if found >= 0 else 0
        place += 2 + int.from_bytes(held[place + 2 : place + 4], "big")
    return 0
