"""The protocol as its documentation shows it, and how little an optimizer of one's own takes."""

from __future__ import annotations

import textwrap

import pytest
import torch

import splatopt
from optim.quadratic import Quadratic
from splatopt.core import optimizer as protocol
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit

LION = """
from dataclasses import dataclass

from splatopt import Optimizer, Oracle, register
from splatopt.core.state import PerParameter


@dataclass(frozen=True)
class LionOptions:
    rate: float = 1e-2


class Lion(Optimizer):
    needs = frozenset({Oracle.GRADIENT})

    def __init__(self, objective, options, generator=None):
        super().__init__(objective, options, generator)
        self.momentum = self.remember(PerParameter("momentum", objective.parameters, degree=1))

    def step(self, batch, progress):
        evaluation = self.objective.gradient(batch)
        for name, gradient in evaluation.gradient.items():
            direction = self.momentum[name].lerp(gradient, 0.1).sign_()
            self.objective.parameters[name].sub_(direction, alpha=self.options.rate * (1 - progress.fraction))
            self.momentum[name].lerp_(gradient, 0.01)
        return evaluation
"""


def made(source: str, name: str, monkeypatch: pytest.MonkeyPatch, objective: Quadratic) -> Optimizer:
    """Return the optimizer that a file registers as ``name``, with its defaults."""
    monkeypatch.setattr(protocol.OPTIMIZERS, "_entries", dict(protocol.OPTIMIZERS._entries))
    names = {name: getattr(splatopt, name) for name in ("Optimizer", "Oracle", "register")}
    exec(compile(source, f"{name}.py", "exec"), {"dataclass": protocol.dataclass, **names})
    entry = find_optimizer(name)
    return entry.optimizer(objective, entry.options(), None)


def test_the_documented_example_steps_by_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, block = (protocol.__doc__ or "").partition("::\n")
    objective = Quadratic(dtype=torch.float64)
    optimizer = made(textwrap.dedent(block), "sign", monkeypatch, objective)
    before = {name: value.clone() for name, value in objective.values.items()}
    gradient = objective.gradient(None).gradient
    loss = optimizer.step(None, Progress(0, 10)).loss
    for name, value in objective.values.items():
        torch.testing.assert_close(value, before[name] - 1e-3 * gradient[name].sign())
    assert objective.loss() < loss


def test_lion_takes_thirty_lines_and_its_state_is_saved_and_follows_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    source = LION.strip() + '\n\n\nregister("lion", Lion, LionOptions)\n'
    assert len(source.splitlines()) <= 30
    objective = Quadratic(rows=3, dtype=torch.float64)
    optimizer = made(source, "lion", monkeypatch, objective)
    gradient = objective.gradient(None).gradient
    before = objective.values["weights"].clone()
    optimizer.step(None, Progress(5, 10))
    torch.testing.assert_close(objective.values["weights"], before - 0.5e-2 * gradient["weights"].sign())
    torch.testing.assert_close(optimizer.state().tensors["momentum.weights"], 0.01 * gradient["weights"])
    again = type(optimizer)(objective, optimizer.options)
    again.load_state(optimizer.state())
    edit = SceneEdit(torch.tensor([2, 0]), torch.tensor([False, True]))
    objective.edit_rows(edit)
    again.edit_rows(edit)
    torch.testing.assert_close(again.state().tensors["momentum.weights"][0], 0.01 * gradient["weights"][2])
    assert again.state().tensors["momentum.weights"][1].tolist() == [0, 0]
