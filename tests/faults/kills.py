"""Runs that are killed again and again must go on, leave nothing behind, and come to the same bytes.

``python -m faults.kills --kills 500 --seed 0`` prints one JSON object of counts. It is a process of its own because its
children are forked: what is heavy is imported once, and nothing else may be at work then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults.killed_child import Ended, KillPlan, run_killed

OPTIMIZERS = ("adam", "sign-tr", "tr2", "block-gn", "learned")
_MAX_KILLS = 4
_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        name: What it is called in counts.
        words: All but the folder; ``{out}`` stands for it.
        resumes: Whether ``--resume`` is added where the folder has a configuration.
        retry: Added where a process of its own was killed alone, which it takes for a failure; None without such.
        results: By name, what must be the same as in a run that nobody killed.
    """

    name: str
    words: tuple[str, ...]
    resumes: bool
    retry: str | None
    results: Callable[[Path], dict[str, str]]


@dataclass
class Tally:
    """What came of a campaign.

    Attributes:
        kills: Kills by command.
        requests: Requests to stop by command.
        runs: Runs that came to their end.
        faults: One sentence each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    faults: list[str] = field(default_factory=list)


GROWING = ("--max-gaussians", "100")
DENSITIES = {
    name: (f"--{name}.start", "0", f"--{name}.every", "1", f"--{name}.horizon", "0", *own)
    for name, own in {"adc": ("--adc.min-gradient", "5e-3"), "mcmc": ("--mcmc.growth", "0.1")}.items()
}
"""Strategies that edit after every step."""


def commands(place: Path, optimizers: Sequence[str] = OPTIMIZERS) -> list[Command]:
    """Return all commands, on small things that lie in ``place``."""
    capture, photo, synthetic = str(place / "capture"), str(place / "photo.png"), str(place / "synthetic")
    quick = ("--threads", "1", "--log-every", "2", "--checkpoint-every", "3", "--eval-every", "4")
    found = [
        Command(
            f"train {name}",
            ("train", capture, "--optimizer", name, "--steps", "8", *quick, "--out", "{out}"),
            True,
            None,
            _train_results,
        )
        for name in optimizers
    ]
    found += [
        Command(
            f"train adam, {name}",
            ("train", capture, *GROWING, "--density", name, *own, "--steps", "8", *quick, "--out", "{out}"),
            True,
            None,
            _train_results,
        )
        for name, own in DENSITIES.items()
    ]
    small = ("--width", "8", "--depth", "1", "--batch", "64", "--epochs", "2", "--log-every", "3", "--eval-every", "5")
    found.append(
        Command(
            "fit",
            ("fit", photo, *small, "--checkpoint-seconds", "0.001", "--threads", "1", "--out", "{out}"),
            True,
            None,
            _fit_results,
        )
    )
    suite = ("--scenes", capture, "--optimizers", "adam", "tr2", "--steps", "6", "--set", "checkpoint_every=2")
    found.append(
        Command("bench", ("bench", *suite, "--threads", "1", "--out", "{out}"), False, "--retry", _bench_results)
    )
    streams = (
        "--streams",
        "1",
        "--steps",
        "4",
        "--save-every",
        "2",
        "--validate-every",
        "2",
        "--losses.lpips-weight",
        "0",
    )
    episodes = ("--tasks.view-batches", "2", "--tasks.targets", "2", "--tasks.sh-degree", "1")
    episodes += ("--episodes.unroll", "2", "--episodes.rollout", "3", "--episodes.rollout-growth", "2")
    found.append(
        Command(
            "meta-train",
            ("meta-train", "--data", synthetic, *streams, *episodes, "--out", "{out}"),
            False,
            None,
            _meta_results,
        )
    )
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _lasting(path: Path, changing: Sequence[str]) -> str:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{name: value for name, value in line.items() if name not in changing} for line in lines])


def _train_results(out: Path) -> dict[str, str]:
    lines = _lasting(out / "metrics.jsonl", ("seconds", "memory_mb"))
    edits = _lasting(out / "density.jsonl", ()) if (out / "density.jsonl").exists() else ""
    return {"scene.ply": _digest(out / "scene.ply"), "metrics.jsonl": lines, "density.jsonl": edits}


def _fit_results(out: Path) -> dict[str, str]:
    newest = max((out / "checkpoints").iterdir())
    return {"the tensors": _digest(newest / "tensors.safetensors"), "result.png": _digest(out / "result.png")}


def _bench_results(out: Path) -> dict[str, str]:
    cells = json.loads((out / "results.json").read_text())["cells"]
    points = [
        [(point["step"], point["psnr"], point["ssim"], point["gaussians"]) for point in cell["points"]]
        for cell in cells
    ]
    scenes = {path.parent.name: _digest(path) for path in sorted(out.glob("cells/*/scene.ply"))}
    pictures = {path.name: _digest(path) for path in sorted(out.glob("pictures/*.webp"))}
    pages = [name for name in ("tables.md", "tables.tex", "tables.csv", "report.html") if (out / name).is_file()]
    return {"points": json.dumps(points), **scenes, **pictures, "pages": str(pages)}


def _meta_results(out: Path) -> dict[str, str]:
    from splatopt.meta.weights import load_weights

    load_weights(str(out / "weights.safetensors"))
    # What it says of the episodes before a kill is not kept.
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    return {"weights": _digest(out / "weights.safetensors"), "log.jsonl": str(steps)}


def prepare(place: Path) -> None:
    """Write a capture, a photograph and synthetic scenes, in a child: nothing may be at work in this process."""
    pid = os.fork()
    if pid == 0:
        import numpy as np
        from PIL import Image

        from splatopt.data.procedural import make_capture
        from splatopt.data.synthetic import SceneOptions, write_scenes

        make_capture(place / "capture", seed=0, views=5, width=24, height=16, points=60)
        waves = np.sin(np.arange(20)[:, None, None] / 3 + np.arange(24)[None, :, None] / 5 + np.arange(3))
        Image.fromarray(((waves + 1) * 127).astype(np.uint8)).save(place / "photo.png")
        list(write_scenes(place / "synthetic", 1, 3, SceneOptions(side=32, views=6, points=100, samples=1)))
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the small things for the campaign could not be made")


def warm_up() -> None:
    """Import what the commands use, and keep it from beginning threads."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    import torch

    import splatopt.bench.output
    import splatopt.bench.session
    import splatopt.bench.worker
    import splatopt.commands.bench
    import splatopt.commands.fit
    import splatopt.commands.meta_train
    import splatopt.commands.train  # noqa: F401

    torch.set_num_threads(1)


class Campaign:
    """Kills runs of one set of commands."""

    def __init__(self, place: Path, seed: int, chosen: Sequence[Command]) -> None:
        self.place, self.chance, self.chosen = place, random.Random(seed), chosen
        self.tally = Tally()
        self.straight: dict[str, tuple[Ended, dict[str, str]]] = {}
        self.number = 0

    def straight_run(self, command: Command) -> tuple[Ended, dict[str, str]]:
        """Return how the command ends when nobody kills it, and what it comes to."""
        if command.name not in self.straight:
            out = self.place / f"straight-{len(self.straight)}"
            ended = self._run(command, out, KillPlan(), "")
            if ended.code:
                raise RuntimeError(f"{command.name} does not run at all: {ended.said[-2000:]}")
            self.straight[command.name] = ended, command.results(out)
            self._check_clean(command, out)
        return self.straight[command.name]

    def _run(self, command: Command, out: Path, plan: KillPlan, more: str) -> Ended:
        words = [word.format(out=out) for word in command.words]
        if command.resumes and (out / "config.json").exists():
            words.append("--resume")
        return run_killed([*words, *more.split()], out, plan, out.with_suffix(".trace"))

    def case(self) -> None:
        """Kill one run up to some times, let it come to its end, and look at what it left."""
        command = self.chosen[self.number % len(self.chosen)]
        self.number += 1
        straight, wanted = self.straight_run(command)
        out = self.place / f"run-{self.number}"
        more = ""
        for _ in range(self.chance.randint(1, _MAX_KILLS)):
            plan = self._kill_plan(command, straight)
            before = self._newest(out)
            ended = self._run(command, out, plan, more)
            self._check_start(command, out, before, ended, anew=bool(more))
            if plan.request:
                self._check_answer(command, out, ended)
            elif ended.code < 0 or plan.alone:
                self.tally.kills[command.name] += 1
            if ended.code == 0 or (ended.code > 0 and not plan.alone and not plan.request):
                break
            more = command.retry or "" if plan.alone else more
        else:
            ended = None
        if ended is None or ended.code != 0:
            before = self._newest(out)
            ended = self._run(command, out, KillPlan(), more)
            self._check_start(command, out, before, ended, anew=bool(more))
        if ended.code:
            self._fault(command, out, f"cannot go on: {' '.join(ended.said.split())[-700:]}")
            return
        self.tally.runs += 1
        came = command.results(out)
        for name, value in wanted.items():
            if came.get(name) != value:
                self._fault(command, out, f"{name} differs")
        if self._check_clean(command, out):
            shutil.rmtree(out)

    def _kill_plan(self, command: Command, straight: Ended) -> KillPlan:
        seed = self.chance.randrange(1 << 30)
        if self.chance.random() < 0.2:
            return KillPlan(seconds=self.chance.uniform(0.001, straight.seconds), seed=seed)
        alone = command.retry is not None and self.chance.random() < 0.3
        operation = self.chance.randint(1, straight.operations)
        if self.chance.random() < 0.2:
            return KillPlan(operation=operation, request=self.chance.choice(_REQUESTS), seed=seed)
        return KillPlan(operation=operation, alone=alone, power=self.chance.random() < 0.5, seed=seed)

    def _check_answer(self, command: Command, out: Path, ended: Ended) -> None:
        """A request is carried out, or comes so late that the work is done all the same."""
        self.tally.requests[command.name] += 1
        answers = [line for line in ended.said.splitlines() if line.startswith("splatopt: stopped")]
        if ended.code not in (0, 130) or (ended.code == 130 and not answers):
            self._fault(command, out, f"a request to stop came to {ended.code}: {ended.said[-700:]}")

    def _newest(self, out: Path) -> dict[str, int]:
        """The newest whole checkpoint of each folder of checkpoints, found without splatopt's own reader."""
        newest: dict[str, int] = {}
        for header in out.rglob("checkpoint.json"):
            name = header.parent.name.removeprefix(".").removesuffix(".before")
            if not name.startswith("step-") or name.endswith((".partial", ".dropped")):
                continue
            values = json.loads(header.read_text())
            if _digest(header.with_name("tensors.safetensors")) == values["sha256"]:
                folder = str(header.parent.parent)
                newest[folder] = max(newest.get(folder, 0), values["step"])
        return newest

    def _check_start(
        self, command: Command, out: Path, newest: dict[str, int], ended: Ended, *, anew: bool = False
    ) -> None:
        """Steps must begin where the newest whole checkpoint is, and none that was saved may be gone.

        A cell that failed is run ``anew``, and what it left is kept elsewhere.
        """
        trace = out.with_suffix(".trace")
        saved: dict[str, int] = {}
        begun: dict[str, int] = {}
        for line in trace.read_text().splitlines() if trace.exists() else []:
            kind, folder, step = line.split()
            if kind == "saved":
                saved[folder] = max(saved.get(folder, 0), int(step))
            else:
                begun.setdefault(folder, int(step))
        for folder, step in begun.items():
            if step != newest.get(folder, 0) and not (anew and step == 0):
                self._fault(command, out, f"began at step {step}, and step {newest.get(folder, 0)} was whole")
        self._never_lost(command, out, saved)
        trace.unlink(missing_ok=True)
        if "Traceback" in ended.said:
            self._fault(command, out, f"a stack trace: {ended.said[-1500:]}")

    def _never_lost(self, command: Command, out: Path, saved: dict[str, int]) -> None:
        now = self._newest(out)
        for folder, step in saved.items():
            if Path(folder).is_dir() and now.get(folder, -1) < step:
                self._fault(command, out, f"the checkpoint of step {step} in {folder} was saved and is gone")

    def _check_clean(self, command: Command, out: Path) -> bool:
        stray = [str(path.relative_to(out)) for path in out.rglob("*") if path.name.startswith(".")]
        stray += [path.name for path in out.parent.glob(f".{out.name}*")]
        if stray:
            self._fault(command, out, f"left behind: {', '.join(stray)}")
        return not stray

    def _fault(self, command: Command, out: Path, what: str) -> None:
        self.tally.faults.append(f"{command.name} ({out.name}): {what}")
        print(self.tally.faults[-1], file=sys.stderr, flush=True)


def run_campaign(kills: int, seed: int, hours: float = 0.0, optimizers: Sequence[str] = OPTIMIZERS) -> Tally:
    """Kill until there were ``kills`` kills, or for ``hours``; prints a line now and then."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="splatopt-kills-") as folder:
        place = Path(folder)
        prepare(place)
        campaign = Campaign(place, seed, commands(place, optimizers))
        deadline = time.monotonic() + 3600 * hours
        told = time.monotonic()
        while sum(campaign.tally.kills.values()) < kills or time.monotonic() < deadline:
            campaign.case()
            if time.monotonic() - told > 60:
                told = time.monotonic()
                count, faults = sum(campaign.tally.kills.values()), len(campaign.tally.faults)
                print(f"{count} kills, {faults} faults", file=sys.stderr, flush=True)
        return campaign.tally


def main() -> int:
    """Run a campaign and print its counts; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kills at least")
    parser.add_argument("--hours", type=float, default=0.0, help="go on for so long at least")
    parser.add_argument("--seed", type=int, default=0, help="decides on all kills")
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), help="of splatopt train")
    given = parser.parse_args()
    tally = run_campaign(given.kills, given.seed, given.hours, given.optimizers)
    print(json.dumps(vars(tally), indent=1))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
