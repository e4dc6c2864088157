"""Meta-training: many episodes, one network."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from splatopt.core.checkpoint import (
    Checkpoint,
    below,
    latest_checkpoint,
    load_checkpoint,
    replace_file,
    save_checkpoint,
)
from splatopt.core.checks import InputError, check_positive, writing
from splatopt.core.files import append_only, make_folder, trim_lines
from splatopt.core.reading import parse_json
from splatopt.core.stop_signals import stop_requests
from splatopt.meta.episode import LossOptions
from splatopt.meta.inner import InnerRates
from splatopt.meta.log import LogLine, TrainLine, validations
from splatopt.meta.network import LearnedNetwork, NetworkOptions
from splatopt.meta.perceptual import ImageLoss
from splatopt.meta.saved import ADAMW, AVERAGE, NETWORK, check_network, check_stream
from splatopt.meta.shared import SharedEpisodes
from splatopt.meta.stream import EpisodeOptions, EpisodeStream, StreamOptions, Variant
from splatopt.meta.tasks import MetaTaskOptions
from splatopt.meta.validation import Curve, validate
from splatopt.meta.weights import save_weights
from splatopt.metrics.lpips import find_lpips
from splatopt.raster.render import find_backend, open_backend

_LOG_EVERY = 20

_MAX_SEED = 2**31 - 1
"""With the stream's number and the scene's it still makes a seed of 64 bits."""


@dataclass(frozen=True)
class MetaTrainConfig:
    """Everything that decides on a meta-training run.

    Attributes:
        out: Its folder.
        network: The network's shape.
        rates: The Adam inside.
        variant: What is trained.
        scenes: Keys of captures to practise on; none to make scenes while training.
        validation: Keys of captures to validate on.
        steps: Meta-steps, over which the learning rate falls.
        streams: Episodes of one meta-step.
        seed: Decides on everything; below 2³¹.
        learning_rate: Of AdamW on the network's weights, at its highest.
        warmup: Meta-steps over which it rises.
        average: Decay of the running mean of the weights that is kept and validated.
        validate_every: Meta-steps between validations.
        save_every: Meta-steps between checkpoints.
        tasks: How scenes are drawn.
        episodes: How episodes begin and end.
        losses: The meta-loss.
        threads: Threads of each process.
        lpips_weights: Where LPIPS' weights lie; PyTorch's hub folder when None.
        device: Where it renders and trains: auto, cpu, cuda or cuda:N.
    """

    out: Path
    network: NetworkOptions
    rates: InnerRates
    variant: Variant = Variant.FULL
    scenes: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    steps: int = 20_000
    streams: int = 2
    seed: int = 0
    learning_rate: float = 1e-3
    warmup: int = 100
    average: float = 0.999
    validate_every: int = 1000
    save_every: int = 500
    tasks: MetaTaskOptions = field(default_factory=MetaTaskOptions)
    episodes: EpisodeOptions = field(default_factory=EpisodeOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    threads: int = 1
    lpips_weights: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot train, and give the network the variant's shape."""
        for name in ("steps", "streams", "validate_every", "save_every", "warmup", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed <= _MAX_SEED:
            raise InputError(f"seed must lie between 0 and {_MAX_SEED:,}, got {self.seed}")
        check_positive("learning_rate", self.learning_rate)
        shape = replace(
            self.network,
            state_scale=self.variant is not Variant.NO_STATE_SCALE,
            clock=self.variant is Variant.FIXED_HORIZON,
        )
        object.__setattr__(self, "network", shape)


class MetaTrainer:
    """Trains one network; several processes each run some of the streams and share their gradients."""

    def __init__(self, config: MetaTrainConfig, rank: int = 0, world_size: int = 1) -> None:
        """Begin, or go on from the newest checkpoint that is whole in the run's folder.

        Args:
            config: What to do.
            rank: This process's, from 0.
            world_size: How many processes there are; more than one needs an initialised ``torch.distributed``.
        """
        self.config, self.rank, self.world_size = config, rank, world_size
        backend = find_backend("auto", config.device)
        self.device = backend.device
        self.network = LearnedNetwork(config.network, config.seed).to(self.device)
        self.average = LearnedNetwork(config.network, config.seed).requires_grad_(False).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=1e-4)
        self.renderer = open_backend(backend, config.threads)
        self.perceptual, self.left_out = self._find_perceptual()
        self.streams = [self._stream(number) for number in range(rank, config.streams, world_size)]
        self.step = 0
        self.seconds = 0.0
        self.recent: list[dict[str, float]] = []
        self.depths, self.deepest = [0, 0, 0], 0
        self.warnings: list[str] = []
        self.requests: list[int] = []
        self.stopping = self.is_unvalidated = False
        self._resume()

    def _stream(self, number: int) -> EpisodeStream:
        config = self.config
        options = StreamOptions(config.rates, config.variant, config.tasks, config.episodes, config.losses)
        return EpisodeStream(
            number,
            config.seed,
            config.scenes,
            self.renderer,
            options,
            perceptual=self.perceptual,
            device=self.device,
        )

    def _find_perceptual(self) -> tuple[ImageLoss | None, str]:
        """Return LPIPS, or in a sentence why the meta-loss goes without it."""
        if not self.config.losses.lpips_weight:
            return None, "LPIPS is left out: its weight is 0"
        found = find_lpips("vgg", self.config.lpips_weights)
        return (None, found) if isinstance(found, str) else (found.distance, "")

    def run(self, watch: Callable[[LogLine], None] = lambda line: None, until: int | None = None) -> None:
        """Train to the last meta-step; ``watch`` gets each line of the log.

        Raises:
            KeyboardInterrupt: We were asked to stop; a checkpoint was written.
        """
        end = min(self.config.steps, until or self.config.steps)
        if self.rank == 0 and self._log_path.exists():
            trim_lines(self._log_path, self.step)
        if self.rank == 0 and self.step:
            # A kill may have come between the checkpoint and them.
            self._write_weights()
        with stop_requests(self.requests):
            self._validate_if_due(end, watch)
            while self.step < end and not self.stopping:
                began = time.perf_counter()
                self._meta_step()
                self.seconds += time.perf_counter() - began
                if self.step % _LOG_EVERY == 0 and self.rank == 0:
                    watch(self._log(self._summary()))
                saves = self.step % self.config.save_every == 0 or self.step == end or self.stopping
                # A validation may take longer than whoever asks to stop has patience.
                if saves or self._is_validation_due(end):
                    self.save()
                if self.stopping:
                    self.is_unvalidated = self._is_validation_due(end)
                else:
                    self._validate_if_due(end, watch)
        if self.stopping and (self.step < end or self.is_unvalidated):
            raise KeyboardInterrupt(f"stopped after meta-step {self.step:,} of {self.config.steps:,}")

    def _meta_step(self) -> None:
        """One episode in each stream, the mean of their gradients, one step of AdamW."""
        config = self.config
        episodes = SharedEpisodes(list(self.network.parameters()), config.streams)
        for stream in self.streams:
            episodes.run(stream, self.network)
        if self.world_size > 1:
            episodes.exchange()
        # Whoever of them was asked to stop: all stop after the same meta-step.
        self.stopping = self._any(bool(self.requests))
        self.recent = [*self.recent, *episodes.seen()][-100:]
        self.depths, self.deepest = episodes.depths(), episodes.deepest()
        if episodes.leave_mean_gradient():
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate()
            self.optimizer.step()
        self.step += 1
        decay = min(config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    def _any(self, mine: bool) -> bool:
        """Whether something is true of any process."""
        found = torch.tensor(float(mine))
        if self.world_size > 1:
            torch.distributed.all_reduce(found)
        return bool(found > 0)

    def _learning_rate(self) -> float:
        """Return the rate of this meta-step: a short rise, then half a cosine down to a twentieth."""
        config = self.config
        rise = min(1.0, (self.step + 1) / config.warmup)
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / config.steps)))
        return config.learning_rate * rise * fall

    # ---- what is written ----

    def _summary(self) -> TrainLine:
        record: TrainLine = {
            "kind": "train",
            "step": self.step,
            "hours": self.seconds / 3600,
            "learning_rate": self._learning_rate(),
            "depths": self.depths,
            "deepest": self.deepest,
        }
        if self.recent:
            record |= {
                "meta_loss": statistics.fmean(seen["meta_loss"] for seen in self.recent),
                "psnr": statistics.fmean(seen["psnr"] for seen in self.recent),
                "gate": statistics.fmean(seen["gate"] for seen in self.recent),
                "moved": statistics.fmean(seen["moved"] for seen in self.recent),
            }
        return record

    def _log(self, record: LogLine) -> LogLine:
        make_folder(self.config.out)
        with writing(self._log_path), os.fdopen(append_only(self._log_path), "ab", buffering=0) as file:
            file.write((json.dumps(record) + "\n").encode())
            # The checkpoint that comes after it must not outlive it.
            os.fsync(file.fileno())
        return record

    @property
    def _log_path(self) -> Path:
        return self.config.out / "log.jsonl"

    def _is_validation_due(self, end: int) -> bool:
        """Whether there is one before the first meta-step, after each so many, or at the end."""
        return bool(self.config.validation) and (self.step % self.config.validate_every == 0 or self.step == end)

    def _validate_if_due(self, end: int, watch: Callable[[LogLine], None]) -> None:
        """Validate, once for each meta-step where it is due; a request to stop ends it, and the next run does it."""
        if not self._is_validation_due(end):
            return
        is_done = self.rank > 0 or self.step in self._validated() or self._validate(watch)
        self.is_unvalidated = self._any(not is_done)
        self.stopping = self._any(bool(self.requests))

    def _validated(self) -> set[int]:
        """Meta-steps whose validation the log holds."""
        lines = self._log_path.read_bytes().splitlines() if self._log_path.exists() else []
        log = str(self._log_path)
        return {line["step"] for line in validations([parse_json(line, log) for line in lines])}

    def _validate(self, watch: Callable[[LogLine], None]) -> bool:
        """Validate; False where we were asked to stop meanwhile."""
        config = self.config
        curve = validate(
            self.average,
            config.rates,
            config.validation,
            self.renderer,
            seed=config.seed,
            device=self.device,
            stopping=lambda: bool(self.requests),
        )
        if curve is None:
            return False
        found = _by_step(curve)
        watch(self._log({"kind": "validation", "step": self.step, "hours": self.seconds / 3600, "psnr": found}))
        return True

    def save(self) -> None:
        """Write each stream's checkpoint, then the network's, then the weights as they can be used."""
        for stream in self.streams:
            tensors, scalars = stream.state()
            save_checkpoint(self._stream_folder(stream.number), Checkpoint(self.step, tensors, scalars))
        if self.world_size > 1:
            torch.distributed.barrier()
        if self.rank:
            return
        tensors = {f"{NETWORK}{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"{AVERAGE}{name}": value for name, value in self.average.state_dict().items()}
        tensors |= _optimizer_tensors(self.optimizer)
        save_checkpoint(self.config.out / "checkpoints", Checkpoint(self.step, tensors, {"seconds": self.seconds}))
        self._write_weights()

    def _write_weights(self) -> None:
        metadata: dict[str, object] = {
            "meta_steps": self.step,
            "hours": round(self.seconds / 3600, 3),
            "seed": self.config.seed,
        }
        metadata |= {"variant": self.config.variant.value, "streams": self.config.streams}
        save_weights(self.config.out / "weights.safetensors", self.average, self.config.rates, metadata)

    def _stream_folder(self, number: int) -> Path:
        return self.config.out / "streams" / f"stream-{number}"

    def _resume(self) -> None:
        checkpoint, damages = latest_checkpoint(self.config.out / "checkpoints", self._check)
        if checkpoint is None:
            if damages:
                raise InputError(f"{self.config.out} holds no whole checkpoint ({damages[0]}); choose another --out")
            return
        self.warnings = damages
        tensors = checkpoint.tensors
        self.network.load_state_dict(below(tensors, NETWORK))
        self.average.load_state_dict(below(tensors, AVERAGE))
        _load_optimizer(self.optimizer, tensors)
        self.step, self.seconds = checkpoint.step, float(checkpoint.scalars["seconds"])
        for stream in self.streams:
            kept = load_checkpoint(self._stream_folder(stream.number) / f"step-{self.step:06d}")
            stream.load(kept.tensors, kept.fields, self.config.network.latent)

    def _check(self, checkpoint: Checkpoint) -> None:
        """Raise DamagedCheckpointError unless network and all streams are there, those of other processes too."""
        check_network(checkpoint, self.network)
        for number in range(self.config.streams):
            kept = load_checkpoint(self._stream_folder(number) / f"step-{checkpoint.step:06d}")
            check_stream(kept, self.config.network, self.config.scenes)


def _by_step(curve: Curve) -> dict[str, float]:
    return {str(step): round(value, 4) for step, value in curve.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    named = {f"{place}.{name}": value for place, kept in state.items() for name, value in kept.items()}
    return {f"{ADAMW}{name}": torch.as_tensor(value) for name, value in named.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in below(tensors, ADAMW).items():
        place, _, kind = name.partition(".")
        state.setdefault(int(place), {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_config(out: Path, described: dict[str, object]) -> None:
    """Keep what a run was told, as JSON, in its folder."""
    make_folder(out)
    replace_file(out / "config.json", (json.dumps(described, indent=1) + "\n").encode())
