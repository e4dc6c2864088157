"""A synthetic capture small enough for an episode in a test, and a stream over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from splatopt.data.synthetic import SceneOptions, write_scenes
from splatopt.meta.episode import EpisodeState
from splatopt.meta.network import LearnedNetwork, NetworkOptions
from splatopt.meta.stream import EpisodeOptions, EpisodeStream, StreamOptions, Variant
from splatopt.meta.tasks import MetaTaskOptions, draw_task, scene_folders
from splatopt.raster.render import make_renderer

SHAPE = NetworkOptions(width=8, latent=3, attention=4, neighbours=3)
SCENES = SceneOptions(side=32, views=6, points=400, samples=1)
TASKS = MetaTaskOptions(view_batches=(2,), targets=2, sh_degree=1)
EPISODES = EpisodeOptions(unroll=2, rollout=6, rollout_growth=3, delta_after=2, fixed_horizon=5)


def make_scenes(folder: Path, count: int = 2, **changed) -> tuple[str, ...]:
    """Write ``count`` small scenes below ``folder`` and return their keys."""
    for _ in write_scenes(folder, count, 3, replace(SCENES, **changed)):
        pass
    return scene_folders(folder)


def begin(scenes: tuple[str, ...], network: LearnedNetwork, options: MetaTaskOptions = TASKS) -> EpisodeState:
    """Return the first scene before its first step, always drawn alike."""
    generator = torch.Generator().manual_seed(0)
    return EpisodeState.begin(draw_task(scenes[0], make_renderer("auto", 1), options, generator), network)


def make_stream(scenes: tuple[str, ...], variant: Variant = Variant.FULL, number: int = 0, **changed) -> EpisodeStream:
    options = replace(StreamOptions(variant=variant, tasks=TASKS, episodes=EPISODES), **changed)
    return EpisodeStream(number, 7, scenes, make_renderer("auto", 1), options)
