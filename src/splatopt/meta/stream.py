"""A stream of meta-training: its own scenes, buffer and randomness, whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.typed import Fields
from splatopt.meta.buffer import CheckpointBuffer, episode_state_record, episode_state_tensors, restored
from splatopt.meta.episode import EpisodeResult, EpisodeState, LossOptions, roll_out, run_episode
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.perceptual import ImageLoss
from splatopt.meta.tasks import MetaTaskOptions, draw_task, synthetic_scene_key
from splatopt.raster.renderer import Renderer

_STREAM_POOL = 64
_STREAM_EVERY = 8


class Variant(Enum):
    """What is trained: the whole method, or the method without one of its parts."""

    FULL = "full"
    NO_BUFFER = "no-buffer"
    NO_ROLLOUT = "no-rollout"
    NO_STATE_SCALE = "no-state-scale"
    FIXED_HORIZON = "fixed-horizon"


@dataclass(frozen=True)
class EpisodeOptions:
    """Where episodes begin, how long they are, and what becomes of the state they leave."""

    unroll: int = 16
    """Steps of an episode at most. Unit: steps. Source: 6 in Learn2Splat; with 8 for all, late steps came out too
    short, with 16 for all the first ten gained nothing, docs/results/learned.md."""

    outlook: int = 6
    """An episode from a state of so many steps takes half to all of those and so many more, within ``unroll``: what
    comes soon counts where a run begins, what comes later where it has lasted. Unit: steps. Source: see above."""

    fresh: float = 0.3
    """Share of episodes that begin with a new scene. Unit: fraction. Source: Learn2Splat; episodes from deep states
    alone cost 1 dB in the first steps at toy scale."""

    kept: float = 0.99
    """Probability that a state taken from the buffer goes back. Unit: fraction. Source: Learn2Splat."""

    inserted: float = 0.7
    """Probability that a new scene's state is put into the buffer. Unit: fraction. Source: Learn2Splat."""

    rollout: int = 50
    """Steps at most that the frozen network takes before a state is kept; drawn from 1 on, long ones seldom.
    Unit: steps. Source: Learn2Splat."""

    rollout_growth: int = 2000
    """Episodes of a stream over which their maximum grows from 1. Unit: episodes. Source: 10,000 of 150,000 in
    Learn2Splat."""

    delta_after: int = 100
    """Episodes of a stream before steps without a reason are penalised. Unit: episodes. Source: Learn2Splat."""

    fixed_horizon: int = 100
    """Steps of a whole run in the variant fixed-horizon. Unit: steps. Source: tens in the earlier methods."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("unroll", "outlook", "rollout", "rollout_growth", "fixed_horizon"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("fresh", "kept", "inserted"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class StreamOptions:
    """What all streams of a training are told."""

    rates: InnerRates = field(default_factory=InnerRates)
    """The Adam inside."""

    variant: Variant = Variant.FULL
    """What is left out."""

    tasks: MetaTaskOptions = field(default_factory=MetaTaskOptions)
    """How scenes are drawn."""

    episodes: EpisodeOptions = field(default_factory=EpisodeOptions)
    """How episodes begin and end."""

    losses: LossOptions = field(default_factory=LossOptions)
    """The meta-loss."""


class EpisodeStream:
    """One stream of episodes, the same whichever process runs it and however many processes there are."""

    def __init__(
        self,
        number: int,
        seed: int,
        scenes: tuple[str, ...],
        renderer: Renderer,
        options: StreamOptions,
        *,
        perceptual: ImageLoss | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begin with an empty buffer.

        Args:
            number: The stream's; with the seed it decides on everything.
            seed: The run's.
            scenes: Keys of captures to choose from; none to make scenes as it goes.
            renderer: What renders and differentiates.
            options: What all streams are told.
            perceptual: LPIPS, where its weights are at hand.
            device: Where clouds and memories lie.
        """
        self.number, self.seed = number, seed
        self.scenes = scenes
        self.renderer = renderer
        self.rates, self.variant = options.rates, options.variant
        self.tasks, self.options, self.losses = options.tasks, options.episodes, options.losses
        self.perceptual, self.device = perceptual, device
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        self.buffer = CheckpointBuffer()
        self.current: EpisodeState | None = None
        self.episodes = 0
        self.fresh_scenes = 0

    def run(self, network: LearnedNetwork) -> EpisodeResult | None:
        """Run one episode and add its gradient to the network's weights; None where the numbers broke down."""
        episode_state, place = self._begin(network)
        max_steps = min(self.options.unroll, episode_state.state.steps + self.options.outlook)
        steps = max_steps - self._draw(max_steps - max_steps // 2)
        result = run_episode(
            network,
            self.rates,
            episode_state,
            steps,
            self.losses,
            self.generator,
            delta_penalty=self.episodes >= self.options.delta_after,
            perceptual=self.perceptual,
        )
        self.episodes += 1
        if result is not None:
            self._keep(network, episode_state, place)
        return result

    def _begin(self, network: LearnedNetwork) -> tuple[EpisodeState, int | None]:
        if self.variant is Variant.FIXED_HORIZON:
            episode_state, self.current = self.current, None
            return (episode_state or self._new(network, self.options.fixed_horizon)), None
        if len(self.buffer) == 0 or self._chance(self.options.fresh):
            return self._new(network, 0), None
        return self.buffer.take(self.generator)

    def _keep(self, network: LearnedNetwork, episode_state: EpisodeState, place: int | None) -> None:
        """Put the state back into the buffer, some steps further on."""
        if self.variant is Variant.FIXED_HORIZON:
            if episode_state.state.steps < self.options.fixed_horizon:
                self.current = episode_state
            return
        if self.variant is Variant.NO_BUFFER:
            return
        if not self._chance(self.options.inserted if place is None else self.options.kept):
            return
        if self.variant is not Variant.NO_ROLLOUT:
            max_steps = 1 + (self.options.rollout - 1) * min(1.0, self.episodes / self.options.rollout_growth)
            steps = max(1, round(max_steps ** float(torch.rand((), generator=self.generator))))
            if not roll_out(network, self.rates, episode_state, steps, self.generator):
                return
        self.buffer.put(episode_state, place, self.generator)

    def _new(self, network: LearnedNetwork, horizon: int) -> EpisodeState:
        if self.scenes:
            scene = self.scenes[self._draw(len(self.scenes))]
        else:
            count = 1 + self.fresh_scenes // _STREAM_EVERY
            newest = self.fresh_scenes % _STREAM_EVERY == 0
            number = count - 1 if newest else max(0, count - 1 - self._draw(min(count, _STREAM_POOL)))
            scene = synthetic_scene_key((self.seed * 1_000 + self.number) * 1_000_000 + number)
        self.fresh_scenes += 1
        task = draw_task(scene, self.renderer, self.tasks, self.generator, self.device)
        return EpisodeState.begin(task, network, horizon)

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def _chance(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return all that the stream needs to go on bit-exactly: tensors, and numbers for JSON."""
        tensors, records = self.buffer.state()
        tensors = {f"buffer.{name}": value for name, value in tensors.items()}
        tensors["generator"] = self.generator.get_state()
        scalars: dict[str, object] = {"episodes": self.episodes, "fresh_scenes": self.fresh_scenes, "buffer": records}
        if self.current is not None:
            tensors |= {f"current.{name}": value for name, value in episode_state_tensors(self.current).items()}
            scalars["current"] = episode_state_record(self.current)
        return tensors, scalars

    def load(self, tensors: Mapping[str, Tensor], scalars: Fields, latent_width: int) -> None:
        """Go on from what :meth:`state` gave."""
        self.generator.set_state(tensors["generator"])
        self.episodes, self.fresh_scenes = scalars.count("episodes"), scalars.count("fresh_scenes")
        self.buffer.load(
            _below(tensors, "buffer."), scalars.objects("buffer"), self.renderer, latent_width, self.device
        )
        self.current = None
        if "current" in scalars:
            own = _below(tensors, "current.")
            self.current = restored(own, scalars.object("current"), self.renderer, latent_width, self.device)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
