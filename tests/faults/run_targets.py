"""Small finished runs of every kind, and the commands that read them."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from splatopt.bench import session, verify
from splatopt.bench.cells import Cell
from splatopt.bench.measure import run_cell
from splatopt.bench.runner import Outcome, SuiteFolder
from splatopt.cli import main
from splatopt.commands import parsing
from splatopt.core.checks import InputError
from splatopt.data import make_capture
from splatopt.data.synthetic import SceneOptions, write_scenes
from splatopt.runs.folder import write_json

_TRAIN = ("--steps", "4", "--checkpoint-every", "2", "--log-every", "1", "--threads", "1", "--sh-degree", "1")
_META = (
    *("--steps", "2", "--streams", "1", "--save-every", "1", "--seed", "3", "--episodes.unroll", "2"),
    *("--tasks.view-batches", "2", "--tasks.targets", "1", "--tasks.sh-degree", "1"),
    *("--episodes.inserted", "1", "--tasks.few", "2", "3", "--losses.lpips-weight", "0", "--episodes.rollout", "2"),
)


@dataclass(frozen=True)
class Target:
    """A folder that is damaged, and what is then called on it.

    Attributes:
        name: What it is.
        damaged: Its files that are damaged, as patterns below it.
        commands: Command lines that read it, all of them safe to call again and again.
        may_fail: Whether a command may say with code 1 that a part of its work failed.
    """

    name: str
    damaged: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    may_fail: bool = False


def words_of(optimizer: str) -> tuple[str, ...]:
    """The words of a run with ``optimizer``."""
    return ("--optimizer", optimizer, *_TRAIN)


def run_quietly(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command; returns its code and what it said on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    return code, said.getvalue()


def launch_here(suite_folder: SuiteFolder, cell: Cell, lpips_weights: str | None) -> Outcome:
    """Run a cell of a suite in this process."""
    try:
        return Outcome(cell, run_cell(cell), None)
    except InputError as error:
        suite_folder.state.mkdir(parents=True, exist_ok=True)
        write_json(suite_folder.request(cell).with_suffix(".failed"), {"reason": str(error)[:1000]})
        return Outcome(cell, {}, str(error))


@contextlib.contextmanager
def in_one_process() -> Iterator[None]:
    """Have suites run their cells here, and each command line parsed once: parsing takes longer than all else."""
    parsed: dict[tuple[str, ...], Any] = {}
    parse = parsing.parse_options

    def once(options: Any, program: str, words: list[str], **settings: Any) -> Any:
        key = (program, *words)
        if key not in parsed:
            parsed[key] = parse(options, program, words, **settings)
        return parsed[key]

    def here(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: function(*given, **{**named, "launch": launch_here})

    with (
        mock.patch.object(parsing, "parse_options", once),
        mock.patch.object(session, "run_cells", here(session.run_cells)),
        mock.patch.object(verify, "verify", here(verify.verify)),
    ):
        yield


RUN_FILES = (
    *("config.json", "eval.json", "metrics.jsonl"),
    *("checkpoints/*/checkpoint.json", "checkpoints/*/*.safetensors"),
)
OPTIMIZERS = ("adam", "block-gn", "learned", "tr2", "zoo:lion")
FITTED = ("adam", "esgd", "shampoo", "kfac", "lbfgs")


class Workshop:
    """Finished runs below one folder, copies of which are damaged."""

    def __init__(
        self, folder: Path, trained: tuple[str, ...] = OPTIMIZERS, fitted: tuple[str, ...] = FITTED, others: bool = True
    ) -> None:
        """Make the runs; takes some ten seconds for all.

        Args:
            folder: Where to.
            trained: Optimizers of scenes.
            fitted: Optimizers of fields.
            others: Whether a suite and a meta-training are made as well.
        """
        self.folder, self.copy = folder, folder / "copy"
        self.capture = make_capture(folder / "capture", seed=0, views=9, width=16, height=16, points=24)
        self.image, self.synthetic = folder / "image.png", folder / "synthetic"
        pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.image)
        for _ in write_scenes(self.synthetic, 1, 3, SceneOptions(side=16, views=5, points=80, samples=1)):
            pass
        self.originals: dict[str, Path] = {}
        self.targets: dict[str, Target] = {}
        with in_one_process():
            for optimizer in trained:
                self._make_train(optimizer)
            for optimizer in fitted:
                self._make_fit(optimizer)
            if others:
                self._make_bench()
                self._make_meta()

    def _add(self, target: Target, make: Callable[[], None]) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)
        make()
        original = self.folder / "originals" / target.name.replace(":", "-")
        shutil.copytree(self.copy, original)
        self.originals[target.name], self.targets[target.name] = original, target

    def _call(self, *words: str) -> None:
        code, said = run_quietly(words)
        assert code == 0, (words, said)

    def _make_train(self, optimizer: str) -> None:
        copy, capture = str(self.copy), str(self.capture)
        train = ("train", capture, "--out", copy, *words_of(optimizer))
        commands = (
            ("eval", copy),
            ("render", copy, "--path", "test"),
            ("export", copy, str(self.copy / "exported.ply")),
            ("report", copy, "--views", "0"),
            ("report", copy, "--views", "1"),
            ("train", capture, "--out", copy, "--resume", "--steps", "5"),
        )
        target = Target(f"train {optimizer}", (*RUN_FILES, "scene.ply"), commands)
        self._add(target, lambda: self._call(*train))

    def _make_fit(self, optimizer: str) -> None:
        copy, image = str(self.copy), str(self.image)
        small = ("--width", "6", "--depth", "1", "--steps", "4", "--log-every", "1", "--threads", "1", "--batch", "50")
        commands = (
            ("report", copy, "--views", "0"),
            ("report", copy, "--views", "1"),
            ("fit", image, "--out", copy, "--resume", "--steps", "5"),
        )
        small = small[:-2] if optimizer == "lbfgs" else small  # which takes everything
        fit = ("fit", image, "--out", copy, "--optimizer", optimizer, *small)
        self._add(Target(f"fit {optimizer}", RUN_FILES, commands), lambda: self._call(*fit))

    def _make_bench(self) -> None:
        copy, page = str(self.copy), self.copy / "page.md"
        suite = (
            *("bench", "--scenes", str(self.capture), "--optimizers", "adam", "adam-tuned", "--steps", "3"),
            *("--threads", "1", "--out", copy, "--set", "sh_degree=1"),
        )
        cell = self.copy / "cells" / "capture.adam.seed0"
        commands = (
            (*suite, "--views", "0"),
            (*suite, "--views", "1"),
            ("bench", "report", copy),
            ("bench", "table", str(page)),
            ("bench", "verify", str(cell)),
        )
        damaged = ("suite.json", "results.json", "cells/*/cell.json", "cells/*/config.json", "pictures/index.json")
        others = ("cells/*/eval.json", "cells/*/checkpoints/*/checkpoint.json", "pictures/*.webp", "state/*.json")

        def make() -> None:
            self._call(*suite, "--views", "1")
            page.write_text("<!-- bench table: results.json psnr -->\n\n<!-- end of table -->\n")

        self._add(Target("bench", damaged + others, commands, may_fail=True), make)

    def _make_meta(self) -> None:
        words = ("meta-train", "--out", str(self.copy), "--data", str(self.synthetic), *_META)
        user = self.copy / "weights.safetensors"
        train = ("train", str(self.capture), "--out", str(self.copy / "run"), *words_of("learned"))
        commands = (words, words, words, (*train, "--learned.weights", str(user)))
        damaged = ("config.json", "log.jsonl", "weights.json", "weights.safetensors")
        kept = ("checkpoints/*/checkpoint.json", "checkpoints/*/*.safetensors", "streams/*/*/checkpoint.json")
        streams = ("streams/*/*/*.safetensors",)
        self._add(Target("meta-train", damaged + kept + streams, commands), lambda: self._call(*words))

    def fresh(self, target: Target) -> Path:
        """Return the copy of a target, as it was made."""
        shutil.rmtree(self.copy, ignore_errors=True)
        return Path(shutil.copytree(self.originals[target.name], self.copy, symlinks=True))

    def choose(self, target: Target, rng: random.Random) -> Path:
        """Return one of the target's files that are damaged."""
        patterns = [found for pattern in target.damaged if (found := sorted(self.copy.glob(pattern)))]
        found = rng.choice(patterns)
        # The newest of several checkpoints is the one that is read.
        return found[-1] if rng.random() < 0.7 else rng.choice(found)
