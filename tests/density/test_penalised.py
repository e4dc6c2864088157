"""A penalty is in loss and gradient, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from density.scenes import scene
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.density.penalised import Penalised


def penalty_on(objective, weight: float = 3.0):
    def penalty():
        value = objective.parameters["log_scales"]
        return weight * float(value.square().sum()), {"log_scales": 2 * weight * value}

    return penalty


def test_loss_gradient_and_value_have_the_penalty():
    objective = scene(6, dtype=torch.float64)
    plain = objective.gradient(None)
    found = Penalised(objective, penalty_on(objective)).gradient(None)
    value = objective.parameters["log_scales"]
    assert found.loss == pytest.approx(plain.loss + 3 * float(value.square().sum()))
    assert Penalised(objective, penalty_on(objective)).value(None) == found.loss
    for name, gradient in found.gradient.items():
        expected = plain.gradient[name] + 6 * value if name == "log_scales" else plain.gradient[name]
        torch.testing.assert_close(gradient, expected)


def test_all_else_is_the_inner_ones():
    objective = scene(6)
    penalised = Penalised(objective, penalty_on(objective))
    tangent = {"log_scales": torch.ones(6, 3)}
    for mine, theirs in zip(penalised.jvp(None, tangent), objective.jvp(None, tangent), strict=True):
        assert torch.equal(mine, theirs)
    assert penalised.parameters is objective.parameters
    assert torch.equal(penalised.gauss_newton_blocks(None).blocks, objective.gauss_newton_blocks(None).blocks)


def test_without_a_penalty_the_answer_is_the_inner_ones():
    objective = scene(6)
    for penalty in (None, lambda: None):
        found = Penalised(objective, penalty).gradient(None)
        assert found.loss == objective.gradient(None).loss
        assert torch.equal(found.gradient["log_scales"], objective.gradient(None).gradient["log_scales"])


@pytest.mark.parametrize("name", ["adam", "sign-tr", "adam-tr", "tr2", "block-gn", "lm", "learned"])
def test_optimizers_with_fused_passes_follow_it(name):
    """Scales go where the penalty wants them, up where the loss alone would leave them."""
    moved = {}
    for weight in (0.0, -30.0):
        objective = scene(12)
        objective.targets["log_scales"] = objective.values["log_scales"].clone()
        before = objective.values["log_scales"].clone()

        def upwards(objective=objective, weight=weight):
            value = objective.parameters["log_scales"]
            return weight * float(value.sum()), {"log_scales": torch.full_like(value, weight)}

        entry = find_optimizer(name)
        penalised = Penalised(objective, upwards)
        optimizer = entry.optimizer(penalised, entry.options(), torch.Generator().manual_seed(0))
        for step in range(3):
            optimizer.step(None, Progress(step, 10))
        moved[weight] = float((objective.values["log_scales"] - before).mean())
    assert moved[-30.0] > moved[0.0] + 1e-4
