"""Adam against torch.optim.Adam, against hand-computed steps, and native against torch."""

from __future__ import annotations

import math

import pytest
import torch

from optim.quadratic import Quadratic
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.optim.first_order import Adam, AdamOptions, TunedAdamOptions
from splatopt.optim.parts import adam
from splatopt.optim.parts.adam import adam_update

needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def path(request, monkeypatch):
    """Both ways of computing the update."""
    if request.param == "torch":
        monkeypatch.setattr(adam, "available", lambda: False)
    return request.param


@pytest.mark.parametrize("shape", [(1,), (7, 3), (33, 15, 3)])
def test_adam_equals_torch_over_many_steps(path, shape):
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(shape, generator=generator)
    theirs = ours.clone().requires_grad_()
    options = AdamOptions(epsilon=1e-8)
    optimizer = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    exp_avg, exp_avg_sq = torch.zeros(shape), torch.zeros(shape)
    for step in range(1, 201):
        gradient = torch.randn(shape, generator=generator) * 10.0 ** float(torch.randn(1, generator=generator))
        theirs.grad = gradient.clone()
        optimizer.step()
        adam_update(ours, gradient, exp_avg, exp_avg_sq, rate=0.01, step=step, options=options)
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-5, atol=2e-6)
    state = optimizer.state[theirs]
    torch.testing.assert_close(exp_avg, state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(exp_avg_sq, state["exp_avg_sq"], rtol=1e-5, atol=1e-9)


def test_adam_equals_torch_in_float64():
    objective, twin = Quadratic(dtype=torch.float64), Quadratic(dtype=torch.float64)
    options = AdamOptions(means_final_factor=1.0)
    optimizer = Adam(objective, options)
    rates = options.rates(twin.length_scale, Progress(0, 1)) | {"weights": options.rate}
    groups = [{"params": [value.requires_grad_()], "lr": rates[name]} for name, value in twin.values.items()]
    reference = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-15)
    for step in range(100):
        optimizer.step(None, Progress(step, 100))
        with torch.no_grad():
            gradient = twin.gradient(None).gradient
        for name, value in twin.values.items():
            value.grad = gradient[name]
        reference.step()
    for name, value in objective.values.items():
        torch.testing.assert_close(value, twin.values[name].detach(), rtol=1e-12, atol=1e-13)


@needs_native
def test_native_and_torch_agree(monkeypatch):
    fused, plain = Quadratic(rows=1000), Quadratic(rows=1000)
    first = Adam(fused, AdamOptions())
    for step in range(50):
        first.step(None, Progress(step, 50))
    monkeypatch.setattr(adam, "available", lambda: False)
    second = Adam(plain, AdamOptions())
    for step in range(50):
        second.step(None, Progress(step, 50))
    for name, value in fused.values.items():
        torch.testing.assert_close(value, plain.values[name], rtol=1e-5, atol=1e-6)


def test_first_two_steps_by_hand(path):
    options = AdamOptions(rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-3)
    value, exp_avg, exp_avg_sq = torch.tensor([1.0]), torch.zeros(1), torch.zeros(1)
    adam_update(value, torch.tensor([2.0]), exp_avg, exp_avg_sq, rate=0.1, step=1, options=options)
    # m = 0.2, v = 0.04; corrected 2 and 4.
    first = 1.0 - 0.1 * 2.0 / (2.0 + 1e-3)
    assert value.item() == pytest.approx(first, rel=1e-6)
    adam_update(value, torch.tensor([-1.0]), exp_avg, exp_avg_sq, rate=0.1, step=2, options=options)
    # m = 0.9*0.2 - 0.1 = 0.08, v = 0.99*0.04 + 0.01 = 0.0496; corrected by 1-0.81 and 1-0.9801.
    second = first - 0.1 * (0.08 / 0.19) / (math.sqrt(0.0496 / 0.0199) + 1e-3)
    assert value.item() == pytest.approx(second, rel=1e-6)


def test_the_first_two_steps_move_by_the_rates():
    """With ε negligible, Adam's first step is rate·sign(g) per group; the means' rate has decayed at the second."""
    objective = Quadratic(dtype=torch.float64)
    options = AdamOptions()
    optimizer = Adam(objective, options)
    start = {name: value.clone() for name, value in objective.values.items()}
    gradient = {name: value.clone() for name, value in objective.gradient(None).gradient.items()}
    optimizer.step(None, Progress(0, 2))
    rates = {"means": 1.6e-4 * 10.0, "logit_opacities": 5e-2, "weights": 1e-3}
    for name, rate in rates.items():
        moved = objective.values[name] - start[name]
        torch.testing.assert_close(moved, -rate * gradient[name].sign(), rtol=1e-9, atol=0)
    assert options.rates(10.0, Progress(1, 2))["means"] == pytest.approx(1.6e-3 * 0.1)
    middle = objective.values["means"].clone()
    second = objective.gradient(None).gradient["means"]
    m = 0.9 * 0.1 * gradient["means"] + 0.1 * second
    v = 0.999 * 0.001 * gradient["means"] ** 2 + 0.001 * second**2
    optimizer.step(None, Progress(1, 2))
    expected = middle - 1.6e-4 * (m / 0.19) / (v / (1 - 0.999**2)).sqrt()
    torch.testing.assert_close(objective.values["means"], expected, rtol=1e-10, atol=1e-12)


def test_rates_are_those_of_3dgs():
    options = AdamOptions()
    first, last = options.rates(2.0, Progress(0, 100)), options.rates(2.0, Progress(100, 100))
    assert first == {
        "means": pytest.approx(3.2e-4),
        "log_scales": 5e-3,
        "quats": 1e-3,
        "logit_opacities": 5e-2,
        "sh_dc": 2.5e-3,
        "sh_rest": 1.25e-4,
    }
    assert last["means"] == pytest.approx(3.2e-6)
    assert {**last, "means": 0} == {**first, "means": 0}


def test_tuned_rates_are_raised_and_all_decay():
    options = TunedAdamOptions(rate_factor=3.0, final_factor=0.25, means_final_factor=0.04)
    plain = AdamOptions().rates(2.0, Progress(0, 100))
    assert options.rates(2.0, Progress(0, 100)) == {name: pytest.approx(3 * rate) for name, rate in plain.items()}
    assert options.other_rate(Progress(0, 100)) == pytest.approx(3e-3)
    for step, others, means in ((50, 0.5, 0.2), (100, 0.25, 0.04), (130, 0.25, 0.04)):
        expected = {name: 3 * rate * (means if name == "means" else others) for name, rate in plain.items()}
        assert options.rates(2.0, Progress(step, 100)) == pytest.approx(expected)
        assert options.other_rate(Progress(step, 100)) == pytest.approx(3e-3 * others)


def test_tuned_adam_is_adam_at_these_rates():
    objective, twin = Quadratic(dtype=torch.float64), Quadratic(dtype=torch.float64)
    tuned = Adam(objective, TunedAdamOptions(rate_factor=5.0, final_factor=0.1, means_final_factor=0.2))
    for step in range(4):
        progress = Progress(step, 4)
        rates = {"means": 5 * 1.6e-3 * 0.2 ** (step / 4), "logit_opacities": 5 * 5e-2 * 0.1 ** (step / 4)}
        rates["weights"] = 5e-3 * 0.1 ** (step / 4)
        tuned.step(None, progress)
        for name, value in twin.values.items():
            state = tuned.state().tensors
            m, v = state[f"exp_avg.{name}"], state[f"exp_avg_sq.{name}"]
            t = step + 1
            value.sub_(rates[name] * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-15))
            torch.testing.assert_close(value, objective.values[name], rtol=1e-12, atol=1e-13)


def test_a_parameter_without_gradient_stays():
    value, state = torch.ones(4), torch.zeros(4)
    adam_update(value, torch.zeros(4), state, torch.zeros(4), rate=1.0, step=1, options=AdamOptions())
    assert torch.equal(value, torch.ones(4))


def test_tensors_with_strides_take_the_torch_path():
    stored = torch.zeros(4, 6)
    value = stored[:, ::2]
    gradient, m, v = torch.ones(4, 3), torch.zeros(4, 3), torch.zeros(4, 3)
    adam_update(value, gradient, m, v, rate=0.5, step=1, options=AdamOptions())
    torch.testing.assert_close(value, torch.full((4, 3), -0.5))
    assert torch.equal(stored[:, 1::2], torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("field", "value"),
    [("means_rate", -1.0), ("beta1", 1.0), ("beta2", -0.1), ("epsilon", 0.0), ("rate", float("nan"))],
)
def test_options_without_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        AdamOptions(**{field: value})
    with pytest.raises(ValueError, match=field):
        TunedAdamOptions(**{field: value})


@pytest.mark.parametrize("field", ["rate_factor", "final_factor", "means_final_factor"])
def test_factors_without_sense_are_refused(field):
    with pytest.raises(ValueError, match=field):
        TunedAdamOptions(**{field: 0.0})


@needs_native
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_reach_the_native_pass_and_change_nothing(monkeypatch, threads):
    asked = []
    workers = native.workers
    monkeypatch.setattr(native, "workers", lambda count=0, isa="auto": asked.append(count) or workers(count, isa))
    objective, twin = Quadratic(), Quadratic()
    Adam(twin, AdamOptions()).step(None, Progress(0, 1))
    asked.clear()
    optimizer = Adam(objective, AdamOptions())
    optimizer.threads = threads
    optimizer.step(None, Progress(0, 1))
    assert asked == [threads] * len(objective.values)
    for name, value in objective.values.items():
        assert torch.equal(value, twin.values[name])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(("block-gn", "factorisations"), ("block-gn", "refresh"), ("lm", "iterations"), ("lm", "halvings")),
        *(("tr2", "probes"), ("sophia", "probes"), ("learned", "neighbour_refresh")),
    ],
)
def test_counts_that_never_end_are_refused(name, option):
    import splatopt.meta  # noqa: F401 - registers learned

    with pytest.raises(InputError, match=rf"{option} must be at most 1,000,000, got 1,000,001"):
        find_optimizer(name).options(**{option: 1_000_001})
