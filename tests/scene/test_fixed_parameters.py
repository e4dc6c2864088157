"""A view that is asked several questions at the same parameters is drawn once, and the answers are the same bits."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import splatopt.optim  # noqa: F401 - registers optimizers
from scene.test_photometric_oracles import make
from splatopt.core import native
from splatopt.core.objective import Objective
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.curvature.estimators import Exact
from splatopt.curvature.hessian import CentralDifference
from splatopt.raster.cpu import NativeRenderer
from splatopt.scene.microbatches import Microbatched

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")


class Drawing(NativeRenderer):
    """Counts the views that are drawn."""

    def __init__(self) -> None:
        super().__init__(1)
        self.drawn = 0
        self.rasterizer = Counted(self)


class Counted:
    """The rasterizer of ``owner``, forward passes counted; ``failing`` ones leave it half drawn."""

    def __init__(self, owner: Drawing) -> None:
        self.owner, self.inner, self.failing = owner, owner.rasterizer, False

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def forward(self, *arguments) -> None:
        self.owner.drawn += 1
        self.inner.forward(*arguments)
        if self.failing:
            raise MemoryError


def answers(objective: Objective, step: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Every question that a step with curvature asks of view 0, in turn."""
    evaluation, blocks = objective.gradient([0]), objective.gauss_newton_blocks([0])
    found = [*evaluation.gradient.values(), blocks.blocks, *blocks.diagonal.values()]
    found = [value.clone() for value in found]
    found.append(torch.tensor(objective.gauss_newton_form([0], step)))
    found += [value.clone() for value in objective.gauss_newton_diagonal([0], Exact()).values()]
    return [*found, *(value.clone() for value in objective.gradient([0]).gradient.values())]


def test_one_view_is_drawn_once_while_it_is_held():
    renderer = Drawing()
    objective = Microbatched(make(renderer=renderer, dtype=torch.float32), print)
    step = {name: torch.full_like(value, 1e-3) for name, value in objective.parameters.items()}
    expected = answers(objective, step)
    assert renderer.drawn == 5
    with objective.fixed_parameters():
        found = answers(objective, step)
        assert renderer.drawn == 6
        objective.gradient([1])
        objective.gradient([0])
        assert renderer.drawn == 8, "another view, and this one again"
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    objective.gradient([0])
    assert renderer.drawn == 9, "the promise is over"


def test_a_difference_of_gradients_stands_on_what_it_moved():
    """It asks at two other points than its own, whatever it was promised."""
    objective = Microbatched(make(renderer=NativeRenderer(1), dtype=torch.float32), print)
    tangent = {name: torch.ones_like(value) for name, value in objective.parameters.items()}
    expected = objective.hvp([0], tangent, CentralDifference())
    assert any(part.abs().max() > 0 for part in expected.values())
    with objective.fixed_parameters():
        before = {name: part.clone() for name, part in objective.gradient([0]).gradient.items()}
        found = objective.hvp([0], tangent, CentralDifference())
        after = objective.gradient([0]).gradient
        assert all(torch.equal(part, after[name]) for name, part in before.items())
    for name, part in expected.items():
        assert torch.equal(part, found[name]), name


def test_what_failed_is_not_taken_for_drawn():
    renderer = Drawing()
    objective = make(renderer=renderer, dtype=torch.float32)
    with objective.fixed_parameters():
        objective.gradient([0])
        renderer.rasterizer.failing = True
        with pytest.raises(MemoryError):
            objective.gradient([1])
        renderer.rasterizer.failing = False
        objective.gradient([0])
        assert renderer.drawn == 3


# block-gn asks for gradient, blocks and, at every second refresh, the overlap; tr2 for gradient and diagonal.
@pytest.mark.parametrize(("name", "spared"), [("block-gn", 2 + 1 + 2), ("tr2", 1 + 1 + 1)])
def test_optimizers_hold_what_they_look_at_and_go_the_same_way(monkeypatch, name, spared):
    ends = {}
    for fixed_parameters in (True, False):
        renderer = Drawing()
        objective = make(renderer=renderer, dtype=torch.float32)
        if not fixed_parameters:
            monkeypatch.setattr(type(objective), "fixed_parameters", lambda _: nullcontext())
        entry = find_optimizer(name)
        optimizer = entry.optimizer(objective, entry.options(refresh=2), torch.Generator().manual_seed(0))
        for step in range(6):
            optimizer.step([step % 3], Progress(step, 6))
        ends[fixed_parameters] = renderer.drawn, {key: value.clone() for key, value in objective.parameters.items()}
    assert ends[False][0] - ends[True][0] == spared
    for key, value in ends[True][1].items():
        assert torch.equal(value, ends[False][1][key]), key
