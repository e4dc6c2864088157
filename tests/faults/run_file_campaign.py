"""A campaign against the commands that read a run's own files: damaged run after damaged run, from one seed.

python -m faults.run_file_campaign COUNT SEED     (from the folder tests)
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from faults.run_damage import damaged_json, damaged_lines, damaged_tensors, displaced, sign
from faults.run_targets import Target, Workshop, in_one_process, run_quietly

HANG_SECONDS = 60
"""A command that takes longer hangs; far above what one takes, since the machine may be busy."""

_COMMANDS_OF_ONE = 2


@dataclass
class Counts:
    """What came of a campaign.

    Attributes:
        mutations: Damaged runs.
        commands: Commands that were called on them.
        used: Commands that came to their end.
        refused: Commands that said in one sentence what is wrong.
        unnamed: Refusals that name no file of the run.
        traces: Commands that ended in an exception.
        unclear: Commands with another code, or another number of sentences.
        hangs: Commands that took longer than HANG_SECONDS.
        peak_mebibytes: Largest resident memory of the process.
        slowest_seconds: Longest time of any command.
        targets: Commands by target.
        failures: What failed: the mutation's number, the command, what it said.
    """

    mutations: int = 0
    commands: int = 0
    used: int = 0
    refused: int = 0
    unnamed: int = 0
    traces: int = 0
    unclear: int = 0
    hangs: int = 0
    peak_mebibytes: float = 0.0
    slowest_seconds: float = 0.0
    targets: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


class _HangError(BaseException):
    """A command took too long."""


def campaign(
    count: int,
    seed: int,
    *,
    first: int = 0,
    seconds: float = float("inf"),
    only: str = "",
    say: bool = False,
    workshop: Workshop | None = None,
) -> Counts:
    """Damage ``count`` runs and call the commands that read them.

    Args:
        count: Damaged runs.
        seed: Decides on all of them: mutation k of a seed is always the same.
        first: Number of the first mutation; a campaign goes on where another ended.
        seconds: No mutation is begun after so many.
        only: Targets whose names begin so; all when empty.
        say: Whether failures are printed as they come.
        workshop: The runs; others are made, and deleted in the end, when None.
    """
    counts, ends = Counts(), time.monotonic() + seconds
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="splatopt-faults-") as folder:
        workshop = workshop or Workshop(Path(folder))
        with in_one_process():
            for number in range(first, first + count):
                if time.monotonic() > ends:
                    break
                _one(workshop, counts, random.Random(f"{seed}-{number}"), number, only, say)
    torch.set_num_threads(threads)
    counts.peak_mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return counts


def _one(workshop: Workshop, counts: Counts, rng: random.Random, number: int, only: str, say: bool) -> None:
    """Damage one run and call commands on it, each on a copy of its own."""
    target = rng.choice([one for name, one in sorted(workshop.targets.items()) if name.startswith(only)])
    counts.mutations += 1
    again = rng.randrange(2**62)
    for words in rng.sample(target.commands, _COMMANDS_OF_ONE):
        workshop.fresh(target)
        # The same damage for each of the commands.
        told = damage(workshop, target, random.Random(again))
        failure = _call(counts, target, words, workshop)
        if failure:
            counts.failures.append(f"mutation {number} of {target.name}: {told}\n{' '.join(words)}\n{failure}")
            if say:
                print(counts.failures[-1], "\n", file=sys.stderr, flush=True)


def damage(workshop: Workshop, target: Target, rng: random.Random) -> str:
    """Damage one file of the copy; returns what was done, in words."""
    path = workshop.choose(target, rng)
    told = str(path.relative_to(workshop.copy))
    if rng.random() < 0.06:
        return f"{told} became {displaced(path, rng)}"
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        changed = damaged_tensors(data, rng)
    elif path.suffix == ".jsonl":
        changed = damaged_lines(data, rng)
    elif path.suffix == ".json":
        changed = damaged_json(data, rng)
    else:
        changed = data[: rng.randrange(len(data))]
    path.write_bytes(changed)
    if path.suffix == ".safetensors" and rng.random() < 0.9:
        # Damage that happened before the file was signed, or on purpose.
        described = path.with_suffix(".json") if path.name == "weights.safetensors" else path.parent / "checkpoint.json"
        sign(described, path)
        told += " (signed)"
    return told


def _call(counts: Counts, target: Target, words: tuple[str, ...], workshop: Workshop) -> str:
    """Call one command; returns what is wrong with how it ended, empty where nothing is."""
    counts.commands += 1
    counts.targets[target.name] += 1
    began = time.perf_counter()
    try:
        with _time_limit():
            code, said = run_quietly(words)
    except _HangError:
        counts.hangs += 1
        return "hangs: " + traceback.format_exc()[-3000:]
    except (Exception, SystemExit):  # whatever it is, the campaign counts it
        counts.traces += 1
        return traceback.format_exc()[-3000:]
    counts.slowest_seconds = max(counts.slowest_seconds, time.perf_counter() - began)
    sentences = [line for line in said.splitlines() if line.startswith("splatopt: ")]
    complaints = [line for line in sentences if not line.startswith("splatopt: warning: ")]
    if code == 0 and not complaints:
        counts.used += 1
        return ""
    if code == 2 and len(complaints) == 1 and "Traceback" not in said:
        counts.refused += 1
        if str(workshop.copy) not in complaints[0]:
            counts.unnamed += 1
            counts.refusals.append(complaints[0])
        return ""
    if code == 1 and target.may_fail and (complaints or words[1] == "verify"):  # which says what differs
        counts.refused += 1
        return ""
    counts.unclear += 1
    return f"code {code}: {said[-2000:]}"


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(words: Sequence[str]) -> int:
    """Run a campaign from the command line and print its counts; 1 where anything failed."""
    only = words[3] if len(words) > 3 else ""
    counts = campaign(int(words[0]), int(words[1]), first=int(words[2]) if len(words) > 2 else 0, only=only, say=True)
    for refusal in sorted(set(counts.refusals))[:200]:
        print("names no file:", refusal[:300], file=sys.stderr)
    print(json.dumps({name: one for name, one in vars(counts).items() if name not in ("failures", "refusals")}))
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
