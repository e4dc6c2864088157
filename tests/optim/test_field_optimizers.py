"""The table of field optimizers: every one descends, resumes, and has documented options."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from fields.cases import generator
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.state import OptimizerState
from splatopt.fields import Architecture, ImageTask, make_field
from splatopt.optim.curvature_diagonal import ESGD, AdaHessianE, AdaHessianJ, ESGDMax
from splatopt.optim.field_optimizers import (
    FIELD_OPTIMIZERS,
    EsgdMaxOptions,
    EsgdOptions,
    FieldAdamOptions,
    field_options,
    find_field_optimizer,
    make_field_optimizer,
)
from splatopt.optim.kfac import KFAC
from splatopt.optim.shampoo import Shampoo

every_optimizer = pytest.mark.parametrize("name", FIELD_OPTIMIZERS)
EVERYTHING = torch.arange(64)
RATES = {"sgd": 0.1, "adam": 1e-2, "adahessian-j": 3e-3, "shampoo": 0.05}
"""For a field of a few features, where the rates of large ones are too small."""


def task():
    """A sine field on a smooth image."""
    x = torch.linspace(-1, 1, 8)
    image = (0.5 + 0.4 * torch.sin(3 * x)[:, None] * torch.cos(2 * x)[None])[..., None]
    return ImageTask(make_field("sine", Architecture(2, 1, 16, 1), generator(), omega=6.0), image)


def make(name, objective, seed=3):
    options = FIELD_OPTIMIZERS[name].entry.options(**({"rate": RATES[name]} if name in RATES else {}))
    return make_field_optimizer(name, objective, "sine", options, generator(seed))


def take(optimizer, first, count):
    for step in range(first, first + count):
        optimizer.step(EVERYTHING, Progress(step, 200))


def test_the_table_has_what_was_promised():
    expected = {"sgd", "adam", "esgd", "esgd-max", "adahessian-e", "adahessian-j", "shampoo", "kfac", "lbfgs"}
    assert set(FIELD_OPTIMIZERS) == expected
    assert [name for name, one in FIELD_OPTIMIZERS.items() if one.full_batch] == ["lbfgs"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("esgd", ESGD),
        ("esgd-max", ESGDMax),
        ("adahessian-e", AdaHessianE),
        ("adahessian-j", AdaHessianJ),
        ("shampoo", Shampoo),
        ("kfac", KFAC),
        ("lbfgs", torch.optim.LBFGS),
    ],
)
def test_each_is_the_torch_optimizer_of_its_name(name, kind):
    assert type(make(name, task()).torch) is kind


@every_optimizer
def test_the_loss_of_a_field_falls(name):
    objective = task()
    optimizer = make(name, objective)
    before = objective.gradient(EVERYTHING).loss
    evaluation = optimizer.step(EVERYTHING, Progress(0, 100))
    assert evaluation.loss == pytest.approx(before, rel=1e-5)
    assert evaluation.metrics["psnr"] > 0
    take(optimizer, 1, 99)
    assert objective.gradient(EVERYTHING).loss < 0.2 * before


@every_optimizer
def test_a_saved_state_goes_on_bit_exactly(name):
    straight, resumed = task(), task()
    optimizer = make(name, straight)
    take(optimizer, 0, 7)
    saved, drawn = optimizer.state(), optimizer.generator.get_state()
    kept = {key: value.clone() for key, value in saved.tensors.items()}
    for key, value in resumed.parameters.items():
        value.copy_(straight.parameters[key])
    second = make(name, resumed, seed=99)
    second.load_state(OptimizerState(kept, json.loads(json.dumps(saved.scalars))))
    second.generator.set_state(drawn)
    take(optimizer, 7, 25)
    take(second, 7, 25)
    for key, value in straight.parameters.items():
        assert torch.equal(value, resumed.parameters[key]), key


@every_optimizer
def test_every_option_has_a_help_a_unit_and_a_source_and_comes_back_from_json(name):
    from tyro._docstrings import get_field_docstring

    options = FIELD_OPTIMIZERS[name].entry.options
    for field in options.__dataclass_fields__:
        help = get_field_docstring(options, field, ())
        assert help, field
        assert "Unit:" in help, field
        assert "Source:" in help, field
    assert options(**json.loads(json.dumps(asdict(options())))) == options()


@every_optimizer
def test_every_option_matters(name):
    """Another value of any option leads elsewhere within 60 steps."""
    kind = FIELD_OPTIMIZERS[name].entry.options
    usual = field_options(name, "sine", kind(**({"rate": RATES[name]} if name in RATES else {})))

    def end(options):
        objective = task()
        optimizer = make_field_optimizer(name, objective, "sine", options, generator(3))
        take(optimizer, 0, 60)
        return torch.cat([value.reshape(-1) for value in objective.parameters.values()])

    plain = end(usual)
    others = {"history": 2, "interval": 7, "warmup": 3, "first_probes": 2, "clip": 1e-5, "floor": 0.5}
    for field in kind.__dataclass_fields__:
        value = getattr(usual, field)
        changed = others.get(field, value * 0.5)
        moved = end(kind(**{**asdict(usual), field: changed}))
        assert not torch.equal(moved, plain), field


@every_optimizer
def test_options_out_of_range_are_refused(name):
    kind = FIELD_OPTIMIZERS[name].entry.options
    for field in kind.__dataclass_fields__:
        with pytest.raises(ValueError, match=field):
            kind(**{field: -1 if field in ("warmup", "interval", "first_probes", "history") else -1.0})


def test_rates_are_those_of_the_field():
    assert field_options("adam", "gaussian").rate == 1e-4
    assert field_options("adam", "relu-pe").rate == 1e-3
    assert field_options("esgd", "sine").rate == 0.15
    assert field_options("esgd", "relu").rate == 0.1
    assert field_options("adam", "relu", FieldAdamOptions(rate=0.5)).rate == 0.5
    assert field_options("zoo:lion", "sine").rate is None


def test_the_floor_is_for_fields_whose_hessian_has_empty_rows():
    for name in ("esgd", "esgd-max", "adahessian-e"):
        assert [field_options(name, field).floor for field in ("sine", "relu", "relu-pe")] == [0.0, 0.1, 0.1]
    assert field_options("adahessian-j", "relu").floor == 0.0
    assert field_options("esgd", "relu", EsgdOptions(floor=0.0)).floor == 0.0
    settings = {"rate": 0.1, "floor": 0.25}
    optimizer = FIELD_OPTIMIZERS["esgd"].entry.optimizer(task(), EsgdOptions(**settings))
    assert optimizer.torch.floor == 0.25


def test_names_and_options_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"'esdg'; did you mean esgd"):
        find_field_optimizer("esdg")
    with pytest.raises(InputError, match=r"options of optimizer 'adam' must be a FieldAdamOptions, got a EsgdOptions"):
        field_options("adam", "sine", EsgdOptions())
    with pytest.raises(InputError, match=r"'esgd' must be a EsgdOptions, got a EsgdMaxOptions"):
        field_options("esgd", "sine", EsgdMaxOptions())
    with pytest.raises(InputError, match="rate of this optimizer must be given"):
        FIELD_OPTIMIZERS["adam"].entry.optimizer(task(), FieldAdamOptions())


def test_kfac_needs_a_network_and_the_curvature_diagonals_a_hessian():
    with pytest.raises(InputError, match="kfac needs the layers of a network"):
        make("kfac", Quadratic())

    class Mute(Quadratic):
        @property
        def oracles(self):
            return frozenset({Oracle.GRADIENT})

    for name in ("esgd", "esgd-max", "adahessian-e", "adahessian-j"):
        with pytest.raises(MissingOracleError, match="hvp"):
            make(name, Mute())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_esgd_starts_sine_well_for_every_seed(seed):
    """With the published start, one probe and D corrected by steps, some seeds fell apart: docs/results/fields.md."""
    side = 48
    x = torch.linspace(-1, 1, side)
    waves = torch.rand(6, 3, generator=generator(seed)) * 30 - 15
    image = sum(torch.sin(a * x[:, None] + b * x[None] + c) for a, b, c in waves.tolist()) / 12 + 0.5
    field = make_field("sine", Architecture(2, 1), generator(seed))
    objective = ImageTask(field, image[..., None])
    optimizer = make_field_optimizer("esgd", objective, "sine", None, generator(seed))
    before = objective.score()["psnr"]
    source = generator(seed)
    losses = []
    for step in range(32):
        batch = torch.randperm(objective.size, generator=source)[:512]
        losses.append(optimizer.step(batch, Progress(step, 32)).loss)
    assert max(losses[8:]) < losses[0], "it never climbs back to where it began"
    assert objective.score()["psnr"] > before + 8
