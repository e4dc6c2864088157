"""A campaign against the readers of files from elsewhere: damaged input after damaged input, from one seed.

Each input is read in a process of its own kind: should native code end it by a signal, loop for ever or take all
memory, that is counted, and another goes on with the next input. Input k of a seed is always the same.

    python -m faults.reader_campaign COUNT SEED     (from the folder tests)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANG_SECONDS = 60.0
"""An input that takes longer hangs; far above what one takes, since the machine may be busy."""

_START_SECONDS = 240.0
"""A process may take so long until it reads its first input: it imports first, on a machine that may be busy."""

MAX_MEBIBYTES = 1024
"""Memory that reading a damaged file may take at most, that of the process without it included."""

_ADDRESS_SPACE = 16 << 30
_FAMILIES = (
    *("colmap", "nerfstudio", "instant-ngp", "blender", "own-split", "llff", "polycam", "record3d"),
    *("points", "scene", "mesh", "image", "suite", "train"),
)


@dataclass
class Counts:
    """What came of a campaign.

    Attributes:
        inputs: Inputs that were read.
        used: Inputs that were taken for good.
        refused: Inputs that were refused in a sentence.
        traces: Inputs that ended in another exception.
        unsafe: Inputs about which the command line printed what it must not.
        signals: Inputs that ended the process.
        hangs: Inputs that took longer than HANG_SECONDS.
        bloated: Inputs that took more than MAX_MEBIBYTES.
        peak_mebibytes: Largest resident memory of any input.
        slowest_seconds: Longest time of any input.
        kinds: Inputs by kind.
        failures: What failed, with the index of the input.
    """

    inputs: int = 0
    used: int = 0
    refused: int = 0
    traces: int = 0
    unsafe: int = 0
    signals: int = 0
    hangs: int = 0
    bloated: int = 0
    peak_mebibytes: float = 0.0
    slowest_seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Count one input."""
        self.inputs += 1
        self.kinds[line["kind"]] += 1
        setattr(self, line["outcome"], getattr(self, line["outcome"]) + 1)
        self.peak_mebibytes = max(self.peak_mebibytes, line.get("mebibytes", 0.0))
        self.slowest_seconds = max(self.slowest_seconds, line.get("seconds", 0.0))
        bloated = line.get("mebibytes", 0.0) > MAX_MEBIBYTES
        self.bloated += bloated
        if bloated or line["outcome"] not in ("used", "refused"):
            self.failures.append(line)


def campaign(
    count: int,
    seed: int,
    *,
    first: int = 0,
    only: str = "",
    seconds: float = float("inf"),
    hang_seconds: float = HANG_SECONDS,
) -> Counts:
    """Read ``count`` damaged inputs.

    Args:
        count: Inputs.
        seed: Decides on all of them.
        first: Index of the first; a campaign goes on where another ended.
        only: Kinds whose names begin so; all when empty.
        seconds: No input is begun after so many.
        hang_seconds: Longest time of an input.
    """
    counts, index, ends = Counts(), first, time.monotonic() + seconds
    while index < first + count and time.monotonic() < ends:
        index = _one_process(counts, (seed, index, first + count, only), ends, hang_seconds)
    return counts


def _one_process(counts: Counts, work: tuple[int, int, int, str], ends: float, hang_seconds: float) -> int:
    """Read inputs in one process until all are done or it dies; returns the index to go on with.

    Args:
        counts: What came of it is added.
        work: Seed, first index, the index after the last, kinds.
        ends: When to stop, in monotonic seconds.
        hang_seconds: Longest time of an input.
    """
    _, index, end, _ = work
    words = [sys.executable, "-m", "faults.reader_campaign", "--work", *map(str, work)]
    place = Path(__file__).parents[1]
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=place, env=environment)
    begun: dict[str, Any] | None = None
    try:
        for line in _lines(process, hang_seconds):
            if "outcome" not in line:
                begun = line
                continue
            counts.add(line)
            index, begun = line["index"] + 1, None
            if index >= end or time.monotonic() > ends:
                return index
        hangs = process.poll() is None and begun is not None
        process.kill()
        code = process.wait()
        if begun is None:
            raise RuntimeError(f"the process that reads ended with {code} before it read input {index}")
        counts.add({**begun, "outcome": "hangs" if hangs else "signals", "code": code})
        return int(begun["index"]) + 1
    finally:
        process.kill()
        process.wait()


def _lines(process: subprocess.Popen[bytes], hang_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what a process says, until it ends or is silent for too long; it may take its time to begin."""
    assert process.stdout is not None
    pending, patience = b"", _START_SECONDS
    with process.stdout as pipe:
        while select.select([pipe], [], [], patience)[0]:
            data, patience = os.read(pipe.fileno(), 65_536), hang_seconds
            if not data:
                process.wait()
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from (json.loads(line) for line in lines)


def damaged(seed: int, index: int, scratch: Path, only: str = "") -> tuple[str, dict[str, bytes]]:
    """Return the kind and the files of an input."""
    from faults.inputs import kinds
    from faults.mutations import mutated, mutated_glb, mutated_json, png_claim, with_checksums

    rng = random.Random(f"{seed}-{index}")
    known = kinds(scratch)
    # A kind first, then a file of it: captures and meshes get as many as images, which have many kinds.
    wanted = [name for name in known if name.startswith(only or tuple(_FAMILIES))]
    family = rng.choice(sorted({name.partition("-")[0] for name in wanted}))
    name = rng.choice([name for name in wanted if name.partition("-")[0] == family])
    files = dict(known[name].files)
    target = rng.choice([file for file in known[name].damaged for _ in range(1 if "images/" in file else 3)])
    others = [
        data
        for kind in known.values()
        if name.partition("-")[0] in kind.damaged or kind is known[name]
        for data in kind.files.values()
    ]
    if target.endswith((".json", ".gltf")) and rng.random() < 0.7:
        files[target] = mutated_json(files[target], rng)
    elif target.endswith(".glb") and rng.random() < 0.7:
        files[target] = mutated_glb(files[target], rng)
    elif files[target].startswith(b"\x89PNG") and rng.random() < 0.7:
        claim = rng.random() < 0.3
        files[target] = png_claim(files[target], rng) if claim else with_checksums(mutated(files[target], rng, others))
    else:
        files[target] = mutated(files[target], rng, others)
    return name, files


def _work(seed: int, index: int, end: int, only: str) -> None:
    """Read inputs and write a line before and after each."""
    from faults.inputs import InputError, UnsafeOutputError, kinds, write

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Numbers that overflow without anybody looking are a fault as well.
    warnings.filterwarnings("error", category=RuntimeWarning, module="splatopt")
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what native code prints is no line of ours
    with tempfile.TemporaryDirectory() as place:
        scratch, folder = Path(place) / "scratch", Path(place) / "input"
        scratch.mkdir()
        known = kinds(scratch)
        for number in range(index, end):
            name, files = damaged(seed, number, scratch, only)
            print(json.dumps({"index": number, "kind": name}), file=lines)
            shutil.rmtree(folder, ignore_errors=True)
            write(files, folder)
            outcome, told, began = "used", "", time.perf_counter()
            _forget_peak()
            try:
                known[name].read(folder)
            except InputError as error:
                outcome = "refused"
                if len(str(error)) > 5000 or "overflow" in str(error):
                    outcome, told = "unsafe", str(error)[:5000]
            except UnsafeOutputError as error:
                outcome, told = "unsafe", str(error)[:5000]
            except BaseException:  # whatever it is, the campaign counts it
                outcome, told = "traces", traceback.format_exc()[-3000:]
            line = {"index": number, "kind": name, "outcome": outcome, "seconds": time.perf_counter() - began}
            print(json.dumps({**line, "mebibytes": _peak(), **({"told": told} if told else {})}), file=lines)


def _forget_peak() -> None:
    """Have the kernel count the peak of resident memory anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Largest resident memory since then, MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(words: Sequence[str]) -> int:
    """Run a campaign from the command line and print its counts; 1 where anything failed."""
    if words[0] == "--work":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _work(int(words[1]), int(words[2]), int(words[3]), words[4])
        return 0
    first = int(words[2]) if len(words) > 2 else 0
    counts = campaign(int(words[0]), int(words[1]), first=first, only=words[3] if len(words) > 3 else "")
    print(json.dumps(vars(counts), indent=1))
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
