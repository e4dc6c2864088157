"""Lanes: where episodes begin, how long they are, and what becomes of the state they leave."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from meta.toys import EPISODES, SHAPE, TASKS, begin, make_scenes, make_stream
from splatopt.meta import stream as stream_module
from splatopt.meta.buffer import DEPTHS, CheckpointBuffer
from splatopt.meta.episode import LossOptions, run_episode
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.stream import Variant
from splatopt.meta.tasks import MetaTaskOptions, cached_capture, draw_task, synthetic_scene_key
from splatopt.raster.render import make_renderer


def situation_of(scenes, network, steps):
    episode_state = begin(scenes, network)
    episode_state.state.steps = steps
    return episode_state


def test_the_buffer_keeps_by_depth_and_the_longest_there_leaves(scenes, network):
    generator = torch.Generator().manual_seed(0)
    buffer = CheckpointBuffer(capacity=2, deepest=1000, eviction=0.5)
    young = [situation_of(scenes, network, steps) for steps in (1, 2, 3)]
    for episode_state in young:
        assert buffer.put(episode_state, None, generator)
    assert buffer.classes[0] == young[1:]
    deep = [situation_of(scenes, network, DEPTHS[1] + k) for k in range(2)]
    for episode_state in deep:
        assert buffer.put(episode_state, 1, generator)
    assert buffer.classes[2] == deep
    tries = [buffer.put(situation_of(scenes, network, DEPTHS[1]), 1, generator) for _ in range(40)]
    assert 8 <= sum(tries) <= 32, "a newcomer is let in half of the time"
    assert buffer.put(situation_of(scenes, network, DEPTHS[1]), 2, generator), "one that was taken from there goes back"
    assert not buffer.put(situation_of(scenes, network, 1001), 2, generator)
    assert len(buffer.classes[2]) == 2


def test_the_buffer_draws_from_every_depth_alike(scenes, network):
    generator = torch.Generator().manual_seed(0)
    buffer = CheckpointBuffer(capacity=4)
    for steps in (1, 2, 3, DEPTHS[1]):
        buffer.put(situation_of(scenes, network, steps), None, generator)
    drawn = []
    for _ in range(60):
        episode_state, place = buffer.take(generator)
        drawn.append(place)
        buffer.put(episode_state, place, generator)
    assert set(drawn) == {0, 2}
    assert 18 <= drawn.count(2) <= 42


def test_episodes_look_as_far_ahead_as_their_scene_is_on_its_way(scenes, network, monkeypatch):
    taken = []

    def noted(network, rates, episode_state, steps, *arguments, **more):
        taken.append((episode_state.state.steps, steps))
        return run_episode(network, rates, episode_state, steps, *arguments, **more)

    monkeypatch.setattr(stream_module, "run_episode", noted)
    stream = make_stream(scenes, episodes=replace(EPISODES, unroll=8, outlook=3))
    for _ in range(25):
        stream.run(network)
    assert {steps for age, steps in taken if age == 0} == {2, 3}
    for age, steps in taken:
        assert min(8, age + 3) / 2 <= steps <= min(8, age + 3)
    assert max(steps for _, steps in taken) > 4


def test_a_stream_goes_deeper_through_buffer_and_rollout(scenes, network):
    stream = make_stream(scenes)
    for _ in range(12):
        assert stream.run(network) is not None
    depths = [episode_state.state.steps for kept in stream.buffer.classes for episode_state in kept]
    assert max(depths) > EPISODES.unroll + 1
    without = make_stream(scenes, Variant.NO_ROLLOUT)
    for _ in range(12):
        without.run(network)
    assert len(without.buffer) > 0
    calls = [episode_state.state.steps for kept in without.buffer.classes for episode_state in kept]
    assert max(calls) < max(depths)
    bare = make_stream(scenes, Variant.NO_BUFFER)
    for _ in range(4):
        bare.run(network)
    assert len(bare.buffer) == 0


def test_a_fixed_horizon_goes_through_whole_runs(scenes):
    network = LearnedNetwork(replace(SHAPE, clock=True))
    stream = make_stream(scenes, Variant.FIXED_HORIZON)
    steps = []
    for _ in range(12):
        stream.run(network)
        steps.append(stream.current.state.steps if stream.current else 0)
    assert 0 in steps, "a run that has reached its horizon makes room for a new one"
    assert max(steps) < EPISODES.fixed_horizon
    assert any(later > earlier > 0 for earlier, later in itertools.pairwise(steps))


def test_practice_mixes_dense_and_sparse_views_points_and_starts(scenes):
    generator = torch.Generator().manual_seed(0)
    renderer = make_renderer("auto", 1)
    shares = MetaTaskOptions(sparse=0.5, random_init=0.5, targets=2, rotated=0.0)
    drawn = [draw_task(scenes[0], renderer, shares, generator) for _ in range(30)]
    views = len(cached_capture(scenes[0]).cameras)
    for task in drawn:
        assert not set(task.inputs) & set(task.targets)
        assert set(task.draw_views(generator)) <= set(task.inputs)
    assert {len(task.inputs) for task in drawn} == {3, 4, 5} & set(range(views)) | {views - views // 4}
    counts = {len(task.objective.cloud) for task in drawn}
    assert len(counts) > 5
    never = draw_task(scenes[0], renderer, replace(shares, random_init=0.0, min_point_share=1.0), generator)
    assert torch.equal(
        never.objective.cloud.means.sort(dim=0).values,
        cached_capture(scenes[0]).points.positions.float().sort(dim=0).values,
    )


def test_a_scene_of_few_points_starts_from_random_ones(tmp_path, network):
    few = make_scenes(tmp_path, 1, points=4)
    available = len(cached_capture(few[0]).points.positions)
    assert available < 5, "fewer than the shipped networks have neighbours, and one"
    episode_state = begin(few, network, replace(TASKS, random_init=0.0))
    assert len(episode_state.task.objective.cloud) == 64
    assert (
        run_episode(network, InnerRates(), episode_state, 1, LossOptions(), torch.Generator().manual_seed(0))
        is not None
    )


def test_scenes_are_made_on_the_way_without_data(network, monkeypatch):
    asked = []

    def small(seed):
        asked.append(seed)
        return original(seed, make_scenes.__globals__["SCENES"])

    from splatopt.meta import tasks

    original = tasks.make_scene
    monkeypatch.setattr(tasks, "make_scene", small)
    stream = make_stream(())
    for _ in range(3):
        assert stream.run(network) is not None
    assert asked
    assert cached_capture(synthetic_scene_key(asked[0])) is cached_capture(synthetic_scene_key(asked[0]))
