"""``splatopt meta-train``: what the command line asks for and prints."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from splatopt.commands.parsing import run_command
from splatopt.core.checkpoint import latest_path, sweep_checkpoints
from splatopt.core.checks import InputError, nearest_names, quoted, say
from splatopt.core.files import locked, make_folder, partial_path, sweep
from splatopt.core.reading import read_object
from splatopt.core.stop_signals import resume_hint, stop_requests
from splatopt.core.version import __version__
from splatopt.data.synthetic import synthetic_options_of
from splatopt.meta.episode import LossOptions
from splatopt.meta.inner import InnerRates
from splatopt.meta.log import LogLine
from splatopt.meta.network import SIZES
from splatopt.meta.stream import EpisodeOptions, Variant
from splatopt.meta.tasks import MetaTaskOptions, scene_folders
from splatopt.meta.training import MetaTrainConfig, MetaTrainer, write_config
from splatopt.runs.program import program

_GOES_ON = ("steps", "until", "processes", "threads", "device", "validate_every", "save_every")
"""Options that a run may go on with other values of."""

_NOT_COMPARED = (*_GOES_ON, "out", "version")
"""A folder may be named in many ways, and moved."""

_REFUSAL = "refusal-"
"""What the file's name begins with that a process leaves its parent."""


@dataclass(frozen=True)
class MetaTrainOptions:
    """Train the network of the learned step on synthetic scenes; given the same --out again, a run goes on."""

    out: Path = Path("runs/meta")
    """Folder of the run: log.jsonl, checkpoints, weights.safetensors and weights.json."""

    size: str = "tiny"
    """Shape of the network: tiny, small or base. Source: docs/meta.md."""

    variant: Variant = Variant.FULL
    """The whole method, or the method without one of its parts. Source: the ablations of docs/results/learned.md."""

    data: Path | None = None
    """Folder of scenes that splatopt data make wrote; scenes are made while training when None."""

    validation: Path | None = None
    """Folder of synthetic scenes to validate on, others than those of --data; no validation when None."""

    steps: int = 20_000
    """Meta-steps, over which the learning rate falls. Unit: meta-steps. Source: docs/results/learned.md."""

    until: int = 0
    """Stop after so many meta-steps, the learning rate going by --steps all the same; 0 for all of them.
    Unit: meta-steps."""

    streams: int = 2
    """Episodes of one meta-step, each from its own stream of scenes. Unit: episodes. Source: as many as processes."""

    processes: int = 1
    """Processes that share out the streams; the result is the same for any number. Unit: processes."""

    seed: int = 0
    """Decides on everything; below 2,147,483,648."""

    learning_rate: float = 1e-3
    """Of AdamW on the network's weights, at its highest. Unit: per meta-step. Source: 1e-4 in Learn2Splat, for a
    network thirty times as large."""

    validate_every: int = 1000
    """Meta-steps between two validations. Unit: meta-steps."""

    validation_scenes: int = 4
    """Scenes of --validation that are looked at. Unit: scenes. Source: some 20 s of one core each."""

    save_every: int = 500
    """Meta-steps between two checkpoints. Unit: meta-steps."""

    threads: int = 1
    """Threads of each process. Unit: threads. Source: scenes of 128 pixels keep no more than one busy."""

    device: str = "auto"
    """Where it renders and trains: auto, cpu, cuda or cuda:N. Source: a GPU where there is one."""

    lpips_weights: Path | None = None
    """Folder with the weights of LPIPS' vgg; PyTorch's hub folder when None. Nothing is downloaded, and without
    them the meta-loss goes without LPIPS."""

    rates: InnerRates = field(default_factory=InnerRates)
    tasks: MetaTaskOptions = field(default_factory=MetaTaskOptions)
    episodes: EpisodeOptions = field(default_factory=EpisodeOptions)
    losses: LossOptions = field(default_factory=LossOptions)


def meta_train(options: MetaTrainOptions, typed: str = "the same command") -> int:
    """Train, or go on, and print what is seen on the way.

    Args:
        options: What to do.
        typed: What to type to go on.

    Raises:
        InputError: Something that was given cannot be used, or another process is at work on the run.
        KeyboardInterrupt: We were asked to stop; the message says what is kept, and how to go on.
    """
    config = _config(options)
    described = _described(options)
    _check_goes_on(options.out, described)
    make_folder(options.out)
    with locked(options.out, f"the run in {options.out}"), resume_hint(lambda: _resume_hint(options.out, typed)):
        begun = _check_goes_on(options.out, described)
        _sweep(options.out)
        if begun:
            say(f"going on in {options.out}", file=sys.stderr)
        what = f"{options.size} ({options.variant.value})"
        say(f"meta-training {what} in {options.out}; give the same command to go on", flush=True)
        try:
            if options.processes == 1:
                _work(0, config, described, 1, "", options.until)
            else:
                _work_together(config, described, options.processes, options.until)
        except InputError:
            if not begun:
                _forget_start(options.out)
            raise
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}; {_resume_hint(options.out, typed)}") from None
    return 0


def _resume_hint(out: Path, typed: str) -> str:
    """Say which checkpoint is kept, and what to type to go on from it."""
    kept = latest_path(out / "checkpoints")
    if kept is None:
        return f"there is no checkpoint to go on from; begin again with: {typed}"
    return f"{kept.name} is kept; go on with: {typed}"


def _sweep(out: Path) -> None:
    """Remove what a kill left half written."""
    sweep([partial_path(out / name) for name in ("config.json", "log.jsonl", "weights.safetensors", "weights.json")])
    for folder in (out / "checkpoints", *(out / "streams").glob("stream-*")):
        sweep_checkpoints(folder)


def _forget_start(out: Path) -> None:
    """Empty the folder of a start that left no checkpoint, so that the corrected command finds it as it was."""
    left = list(out.iterdir()) if out.is_dir() else []
    if {path.name for path in left} <= {"config.json", "log.jsonl"}:
        for path in left:
            path.unlink()


def _work_together(config: MetaTrainConfig, described: dict[str, object], processes: int, until: int) -> None:
    """Let ``processes`` processes do the work.

    Raises:
        InputError: What one of them raised, or one was lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        requests: list[int] = []
        try:
            # They hear of a request from us alone, once.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
            try:
                workers = torch.multiprocessing.spawn(
                    _work_for_parent, args=(config, described, processes, folder, until), nprocs=processes, join=False
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

            def forward() -> None:
                for process in workers.processes:
                    process.terminate()

            with stop_requests(requests, forward):
                while not workers.join():
                    pass
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            if requests:
                raise KeyboardInterrupt from None
            # Where one refuses, the others fail as well, perhaps before it is looked at.
            refusals = sorted(Path(folder).glob(f"{_REFUSAL}*"))
            if refusals:
                raise InputError(refusals[0].read_text(encoding="utf-8")) from None
            if isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            raise InputError(
                f"process {error.error_index} of {processes} was lost; give the same command to go on from the "
                f"last checkpoint in {config.out}"
            ) from error
        if requests:
            raise KeyboardInterrupt


def _work_for_parent(
    rank: int, config: MetaTrainConfig, described: dict[str, object], world_size: int, folder: str, until: int
) -> None:
    """Work, and leave what was refused as a file: a traceback in text is all that gets to the parent otherwise."""
    try:
        _work(rank, config, described, world_size, f"file://{folder}/meeting", until)
    except (InputError, OSError) as error:
        # Where the disk is full, this may fail as well, and the parent says no more than that a process was lost.
        with contextlib.suppress(OSError):
            partial = Path(folder) / f"partial-{rank}"
            partial.write_text(_sentence(error), encoding="utf-8")
            partial.replace(Path(folder) / f"{_REFUSAL}{rank}")
        sys.exit(2)
    except KeyboardInterrupt:
        # The parent says it.
        return


def _sentence(error: Exception) -> str:
    """What an error says to a person; that of the system names its file last."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _work(
    rank: int, config: MetaTrainConfig, described: dict[str, object], world_size: int, meeting: str, until: int
) -> None:
    """What each process does."""
    torch.set_num_threads(config.threads)
    if world_size > 1:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    trainer = MetaTrainer(config, rank, world_size)
    if rank == 0:
        write_config(config.out, described)
        for warning in trainer.warnings:
            say(f"splatopt: warning: {warning}", file=sys.stderr)
        if trainer.left_out:
            say(trainer.left_out)
    trainer.run(_say if rank == 0 else lambda record: None, until or None)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def _end_with_parent(parent: int) -> None:
    """End this process when the one that began it is gone: nobody would wait for it, or stop it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _say(record: LogLine) -> None:
    head = f"{record['step']:>7,} meta-steps, {record['hours']:.2f} h"
    if record["kind"] == "validation":
        values = ", ".join(f"{value:.2f} dB after {int(step):,}" for step, value in record["psnr"].items())
        say(f"{head}: validation {values}", flush=True)
    elif record["step"] % 100 == 0:
        say(f"{head}: meta-loss {record.get('meta_loss', float('nan')):.4f}", flush=True)


def _config(options: MetaTrainOptions) -> MetaTrainConfig:
    if options.size not in SIZES:
        raise InputError(f"there is no size {options.size!r}; {nearest_names(options.size, SIZES)}")
    if options.processes < 1:
        raise InputError(f"--processes must be at least 1, got {options.processes}")
    if options.processes > options.streams:
        raise InputError(f"--processes must be at most --streams, {options.streams}, got {options.processes}")
    if options.until < 0:
        raise InputError(f"--until must be at least 0, got {options.until}")
    if options.validation_scenes < 1:
        raise InputError(f"--validation-scenes must be at least 1, got {options.validation_scenes}")
    scenes = scene_folders(options.data) if options.data else ()
    validation = scene_folders(options.validation)[: options.validation_scenes] if options.validation else ()
    _check_others(scenes, validation)
    names = {item.name for item in fields(MetaTrainConfig)} & {item.name for item in fields(MetaTrainOptions)}
    return MetaTrainConfig(
        network=SIZES[options.size],
        scenes=scenes,
        **{name: getattr(options, name) for name in names if name != "validation"},
        validation=validation,
    )


def _check_others(scenes: Sequence[str], validation: Sequence[str]) -> None:
    """Make sure that no scene of ``validation`` is trained on, from the same folder or a copy of its world.

    Raises:
        InputError: One is.
    """
    trained = {_world(Path(scene)): scene for scene in scenes}
    for scene in validation:
        same = trained.get(_world(Path(scene)))
        if same is not None:
            raise InputError(
                f"{scene} of --validation is the same scene as {same} of --data; make others with "
                "splatopt data make and another --seed"
            )


def _world(scene: Path) -> tuple[object, ...]:
    """Return what decides on a synthetic scene's world, not its images; the folder where that is not known."""
    mark = synthetic_options_of(scene)
    if mark is None or "own_seed" not in mark:
        return (str(scene.resolve()),)
    return str(mark["own_seed"]), str(mark.get("kinds"))


def _described(options: MetaTrainOptions) -> dict[str, object]:
    """What a run's config.json says; folders are whole paths, so that the command may be given from elsewhere."""
    plain = asdict(options) | {"variant": options.variant.value, "version": __version__}
    described = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in plain.items()}
    return dict(json.loads(json.dumps(described)))  # as it will be read again: tuples are lists


def _cut(value: object) -> str:
    """A setting as a message tells it."""
    return quoted(json.dumps(value))


def _check_goes_on(out: Path, described: dict[str, object]) -> bool:
    """Return whether ``out`` holds a run, and make sure that it is the one that is asked for.

    Raises:
        InputError: It is another one, or its description cannot be read.
    """
    path = out / "config.json"
    saved = read_object(path)
    if saved is None:
        if out.exists() and any(found.name != partial_path(path).name for found in out.iterdir()):
            raise InputError(f"{out} holds something else than a meta-training run; choose another --out")
        return False
    different = sorted(name for name in described if name not in _NOT_COMPARED and saved.get(name) != described[name])
    if different:
        name = different[0]
        raise InputError(
            f"{path}: {out} holds a run with {name} {_cut(saved.get(name))}, not {_cut(described[name])}; give the "
            "command that began it, or choose another --out"
        )
    return True


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    typed = f"{program()} meta-train {shlex.join(words)}".rstrip()
    return run_command(MetaTrainOptions, lambda options: meta_train(options, typed), "meta-train", words)
