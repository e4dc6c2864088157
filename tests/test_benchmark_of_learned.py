"""The benchmark of the learned step times one load, and not what it turns into."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import learned
from benchmarks.loads import made_up

from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork, NetworkOptions
from splatopt.meta.weights import save_weights
from splatopt.scene.photometric import PhotometricObjective


def test_every_gradient_is_taken_at_the_load(tmp_path, monkeypatch):
    load = made_up(100, 32, 24, 20.0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, LearnedNetwork(NetworkOptions(width=8, latent=3, attention=4)), InnerRates(), {})
    points = []
    gradient = PhotometricObjective.gradient

    def watched(objective, batch):
        points.append({name: value.detach().clone() for name, value in objective.parameters.items()})
        return gradient(objective, batch)

    monkeypatch.setattr(PhotometricObjective, "gradient", watched)
    monkeypatch.setattr(learned, "_STEPS", 2)
    assert learned._cost(load, 1, path) > 0
    assert len(points) == learned._WARM_UP + 2
    for point in points:
        for name, value in load.cloud.tensors.items():
            assert torch.equal(point[name], value), name
