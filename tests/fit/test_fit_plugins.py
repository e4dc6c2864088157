"""Optimizers that others register fit fields too, as far as a field gives what they need."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import OPTIMIZERS, Optimizer, register
from splatopt.fit.config import FitConfig
from splatopt.fit.loop import fit_field, open_field
from splatopt.optim.field_optimizers import find_field_optimizer


@dataclass(frozen=True)
class StepOptions:
    rate: float = 1e-3


class Stepping(Optimizer):
    needs = frozenset({Oracle.GRADIENT})

    def step(self, batch, progress):
        evaluation = self.objective.gradient(batch)
        for name, parameter in self.objective.parameters.items():
            parameter.sub_(evaluation.gradient[name].sign(), alpha=self.options.rate)
        return evaluation


class Blocked(Stepping):
    needs = frozenset({Oracle.GAUSS_NEWTON_BLOCKS})


@pytest.fixture
def names():
    """Registers optimizers for the length of a test."""
    given = []

    def add(name: str, optimizer: type[Optimizer]) -> None:
        register(name, optimizer, StepOptions)
        given.append(name)

    yield add
    for name in set(given) & set(OPTIMIZERS.names()):
        OPTIMIZERS.forget(name)


@pytest.fixture
def image(tmp_path):
    from PIL import Image

    path = tmp_path / "image.png"
    Image.fromarray(torch.arange(12 * 16 * 3, dtype=torch.uint8).reshape(12, 16, 3).numpy()).save(path)
    return path


def test_one_that_asks_for_the_gradient_fits_and_goes_on(names, image, tmp_path):
    names("stepping", Stepping)
    config = FitConfig.of(image, optimizer="stepping", optimizer_options=StepOptions(2e-3), steps=6, width=16)
    result = fit_field(config.changed(out=tmp_path / "run"))
    assert result.after["psnr"] > result.before["psnr"]
    resumed = fit_field(FitConfig.of(image, out=tmp_path / "run", resume=True, steps=8))
    assert (resumed.steps, resumed.config.schedule.optimizer_options) == (8, StepOptions(2e-3))


def test_a_fit_whose_optimizer_is_unknown_can_be_looked_at(names, image, tmp_path):
    names("stepping", Stepping)
    fit_field(FitConfig.of(image, optimizer="stepping", steps=2, width=16, out=tmp_path / "run"))
    OPTIMIZERS.forget("stepping")
    config, _, steps = open_field(tmp_path / "run")
    assert (config.schedule.optimizer, steps) == ("stepping", 2)
    with pytest.raises(InputError, match="no optimizer of fields is named 'stepping'.*give the plug-in that has it"):
        fit_field(FitConfig.of(image, out=tmp_path / "run", resume=True, steps=4))


def test_one_that_asks_for_more_is_refused(names, image, tmp_path):
    names("blocked", Blocked)
    with pytest.raises(MissingOracleError, match="'Blocked' needs gauss_newton_blocks"):
        fit_field(FitConfig.of(image, optimizer="blocked", steps=2, width=16, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_name_that_fields_have_already_is_refused_with_both(names):
    names("sgd", Stepping)
    with pytest.raises(InputError, match=r"two optimizers of fields are named 'sgd'.*test_fit_plugins\.py:\d+"):
        find_field_optimizer("sgd")


def test_an_optimizer_of_scenes_is_told_apart_from_an_unknown_name():
    with pytest.raises(InputError, match="'tr2' is an optimizer of scenes, whose options are of Gaussians; of fields"):
        find_field_optimizer("tr2")
