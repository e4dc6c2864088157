"""Five steps of the shipped weights, against stored numbers: what they are fed, and in which order, must not change.

Other tests compare the step's two forms with each other; a feature that moves in both is noticed here alone. Where the
shipped weights or their features are changed on purpose, write the numbers anew and commit them with the weights::

    PYTHONPATH=src:tests python -m meta.test_stored_steps
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core import native
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta import learned as learned_module
from splatopt.meta.constants import ROW_FEATURES, SCENE_FEATURES
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.network import LearnedNetwork

STORED = Path(__file__).with_name("trajectory.json")
STEPS, ROWS, TOLERANCE = 5, 24, 1e-4
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no native module"))


class Toy(Quadratic):
    """Gaussians of which each evaluation leaves out every fifth, others each time."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(rows=ROWS, spread=0.5, gaussians=True)
        for part in (self.values, self.targets, self.curvature):
            part.update({name: value.to(dtype) for name, value in part.items()})
        self.asked = 0

    def gradient(self, batch: object) -> Evaluation:
        seen = (torch.arange(ROWS) + self.asked) % 5 != 0
        self.asked += 1
        gradient = {
            name: torch.where(seen.reshape(-1, *[1] * (value.dim() - 1)), value, 0.0)
            for name, value in super().gradient(batch).gradient.items()
        }
        return Evaluation(loss=self.loss() / 100, gradient=gradient, seen=seen, metrics={})


def moved(
    averaged: bool, dtype: torch.dtype = torch.float32, change: Callable[[LearnedNetwork], object] = id
) -> dict[str, Tensor]:
    """Return how far each parameter is from its start, flat, in float64."""
    objective = Toy(dtype)
    start = {name: value.double().clone() for name, value in objective.parameters.items()}
    optimizer = Learned(objective, LearnedOptions("tiny", averaged=averaged))
    change(optimizer.weights.network)
    for step in range(STEPS):
        optimizer.step(None, Progress(step, 1000))
    return {name: (objective.parameters[name].double() - start[name]).reshape(-1) for name in GAUSSIAN_TENSORS}


def summed_up(way: dict[str, Tensor]) -> dict[str, list[float]]:
    """Return for each group the root mean square of its moves, their mean, and four of them."""
    return {
        name: [float(f"{value:.7g}") for value in (way_of.square().mean().sqrt(), way_of.mean(), *way_of[1::11][:4])]
        for name, way_of in way.items()
    }


def difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """Return the largest difference in parts of its group's root mean square."""
    return max(
        abs(one - other) / expected[name][0]
        for name in GAUSSIAN_TENSORS
        for one, other in zip(found[name], expected[name], strict=True)
    )


def stored(averaged: bool) -> dict[str, list[float]]:
    return json.loads(STORED.read_text())["averaged" if averaged else "last iterate"]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("path", ["torch", "torch in float64", NATIVE])
def test_the_shipped_weights_go_the_way_that_is_stored(path, averaged, monkeypatch):
    taken = []
    original = Learned._step_natively
    monkeypatch.setattr(Learned, "_step_natively", lambda *args: taken.append(1) or original(*args))
    if path == "torch":
        monkeypatch.setattr(learned_module, "fits", lambda *args: False)
    way = moved(averaged, torch.float64 if path == "torch in float64" else torch.float32)
    assert len(taken) == (STEPS if path == "native" else 0)
    assert difference(summed_up(way), stored(averaged)) < TOLERANCE


@pytest.mark.parametrize("of_the_scene", [False, True])
def test_any_two_features_that_change_places_are_noticed(of_the_scene):
    """Swapping what the network reads is swapping what it is fed."""

    def swapped(place: int) -> Callable[[LearnedNetwork], None]:
        def change(network: LearnedNetwork) -> None:
            assert network.scale is not None
            layers = [network.pool[0]] if of_the_scene else [network.enter, network.scale[0]]
            first = network.options.width * of_the_scene + place
            for layer in layers:
                weight = layer.weight.detach()
                weight[:, [first, first + 1]] = weight[:, [first + 1, first]]

        return change

    for place in range((SCENE_FEATURES if of_the_scene else ROW_FEATURES) - 1):
        way = moved(averaged=False, change=swapped(place))
        assert difference(summed_up(way), stored(averaged=False)) > 10 * TOLERANCE, place


if __name__ == "__main__":
    numbers = {name: summed_up(moved(name == "averaged", torch.float64)) for name in ("last iterate", "averaged")}
    STORED.write_text(json.dumps(numbers, indent=1) + "\n")
