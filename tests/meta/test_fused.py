"""The learned step's native passes against PyTorch in float64, for every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from meta.clouds import RATES, SMALL, begin, random_sequence, stirred
from optim.quadratic import Quadratic
from splatopt.core import native
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta import fused as fused_module
from splatopt.meta import learned as learned_module
from splatopt.meta.features import build_inputs
from splatopt.meta.fused import FusedNetwork, fits, pack
from splatopt.meta.inner import InnerState
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.neighbours import nearest_others
from splatopt.meta.network import SIZES, LearnedNetwork, NetworkOptions
from splatopt.meta.step import learned_step
from splatopt.meta.weights import save_weights

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")

ISAS = native.load().supported_isas() if native.available() else []
SCALE = 2.0
CLOCK = torch.tensor([0.2, 0.8])


@dataclass
class Run:
    """A cloud in the midst of a run."""

    parameters: dict[str, Tensor]
    state: InnerState
    near: Tensor

    def to(self, dtype: torch.dtype) -> Run:
        copied = self.state.clone()
        for part in (copied.exp_avg, copied.exp_avg_sq, copied.slow):
            part.update({name: value.to(dtype) for name, value in part.items()})
        copied.latent, copied.age = copied.latent.to(dtype), copied.age.to(dtype)
        return Run({name: value.to(dtype, copy=True) for name, value in self.parameters.items()}, copied, self.near)


def start(sequence, network) -> Run:
    parameters = {name: value.float() for name, value in sequence.parameters.items()}
    near = nearest_others(parameters["means"], network.options.neighbours, threads=1)
    return Run(parameters, begin(parameters, network), near)


@torch.no_grad()
def in_torch(network, run: Run, gradient, loss, seen, rates=RATES) -> None:
    """Take the step as ``Learned`` does without native passes, in the type of ``run``."""
    dtype = run.parameters["means"].dtype
    gradient = {name: value.float().to(dtype) for name, value in gradient.items()}
    run.state.observe(gradient, loss, seen, rates)
    inputs = build_inputs(run.parameters, gradient, run.state, rates, SCALE, seen)
    clock = CLOCK if network.options.clock else None
    step = learned_step(network, inputs, run.state, rates, SCALE, run.near, clock).mended()
    run.state.latent = step.latent
    run.parameters = {name: value + step.changes[name] for name, value in run.parameters.items()}


@torch.no_grad()
def natively(passes: FusedNetwork, run: Run, gradient, loss, seen, clocked: bool = False, rates=RATES) -> None:
    gradient = {name: value.float() for name, value in gradient.items()}
    assert fits(run.parameters, gradient)
    clock = CLOCK if clocked else None
    evaluation = Evaluation(loss, gradient, seen, {})
    passes.step(run.parameters, evaluation, seen, run.state, run.near, rates, SCALE, clock)


def evaluations(sequence):
    return zip(sequence.gradients, sequence.losses, sequence.seen, strict=True)


def assert_same_step(made: Run, expected: Run, before: Run) -> None:
    """The same to what float32 loses of a step and of the values that it changes."""
    for name in GAUSSIAN_TENSORS:
        if not expected.parameters[name].numel():
            continue
        moved = (expected.parameters[name] - before.parameters[name]).abs().max()
        allowed = 2e-5 * moved + 1e-6 * before.parameters[name].abs().max()
        error = (made.parameters[name] - expected.parameters[name]).abs().max()
        assert error <= allowed, (name, float(error / allowed))
    for name, value in expected.state.tensors().items():
        size = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(made.state.tensors()[name].double(), value, rtol=2e-5, atol=2e-6 * size, msg=name)
    assert made.state.scalars() == expected.state.scalars()


SHAPES = {
    "tiny": NetworkOptions(),
    "narrow": SMALL,
    "plain": NetworkOptions(neighbours=0, state_scale=False),
    "clock": replace(SMALL, clock=True, neighbours=0),
    "odd": NetworkOptions(width=19, blocks=2, latent=5, attention=20, neighbours=2, clock=True),
    "one": NetworkOptions(width=1, blocks=3, latent=1, attention=1, neighbours=1),
    "small": SIZES["small"],
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "rest"), [(301, 3), (33, 0), (64, 8), (5, 15)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_native_passes_are_the_step(monkeypatch, isa, shape, rows, rest) -> None:
    workers = native.workers(2, isa)
    assert workers.isa == isa
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    options = SHAPES[shape]
    # Wide networks stirred as much as narrow ones would lose more to float32 than is asked for here, in torch as well.
    size = 0.1 if options.width < 64 else 0.03
    network = stirred(LearnedNetwork(options), size=size)
    passes, exact = FusedNetwork(network), stirred(LearnedNetwork(options), size=size).double()
    sequence = random_sequence(rows, 4, unseen=0.3, rest=rest)
    made = start(sequence, network)
    expected = made.to(torch.float64)
    for gradient, loss, seen in evaluations(sequence):
        before = made.to(torch.float64)
        in_torch(exact, expected, gradient, loss, seen)
        natively(passes, made, gradient, loss, seen, clocked=options.clock)
        assert_same_step(made, expected, before)
        for name in GAUSSIAN_TENSORS:
            assert torch.equal(made.parameters[name][~seen].double(), before.parameters[name][~seen]), name
            assert rest == 0 or not torch.equal(made.parameters[name][seen].double(), before.parameters[name][seen])
        assert torch.equal(made.state.latent[~seen].double(), before.state.latent[~seen])


@pytest.mark.parametrize("fall", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("isa", ISAS)
def test_ages_tell_on_rates_and_share_as_in_torch(monkeypatch, isa, fall) -> None:
    workers = native.workers(1, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    rates = replace(RATES, patience=3.0, fall=fall, handover=0.5)  # a share below a hundredth from 50 times on
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    passes, exact = FusedNetwork(network), stirred(LearnedNetwork(SMALL), size=0.1).double()
    sequence = random_sequence(70, 1, unseen=0.3, rest=3)
    made = start(sequence, network)
    made.state.age = torch.arange(70.0)
    expected, before = made.to(torch.float64), made.to(torch.float64)
    for gradient, loss, seen in evaluations(sequence):
        in_torch(exact, expected, gradient, loss, seen, rates)
        natively(passes, made, gradient, loss, seen, rates=rates)
    assert_same_step(made, expected, before)


@pytest.mark.parametrize("isa", ISAS)
def test_awkward_scenes_are_stepped_as_in_torch(monkeypatch, isa) -> None:
    """Sizes, opacities and colours beyond what features are bounded to; old rows; no gradient at all; far away."""
    workers = native.workers(1, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    exact = stirred(LearnedNetwork(SMALL), size=0.1).double()
    sequence = random_sequence(150, 3)
    cloud = sequence.parameters
    cloud["log_scales"] *= 8
    cloud["logit_opacities"] *= 12
    cloud["sh_dc"] *= 5
    cloud["sh_rest"][::4] = 0
    cloud["sh_rest"][1::4] *= 9
    cloud["quats"] *= torch.exp(4 * cloud["quats"][:, :1])
    cloud["means"][3] = cloud["means"].mean(dim=0)
    cloud["means"] = 50 + cloud["means"] * 10 ** cloud["sh_dc"][:, :1].clamp(-2, 2)
    for gradient in sequence.gradients:
        for name in GAUSSIAN_TENSORS:
            gradient[name][:20] = 0
            gradient[name][20:40] *= 1e-12
            gradient[name][40:60] *= 1e7
    made = start(sequence, network)
    made.state.age[::3] = torch.linspace(1, 40_000, 50).round()
    expected = made.to(torch.float64)
    for gradient, loss, seen in evaluations(sequence):
        before = made.to(torch.float64)
        in_torch(exact, expected, gradient, loss, seen)
        natively(FusedNetwork(network), made, gradient, loss, seen)
        for name in GAUSSIAN_TENSORS:
            moved = (expected.parameters[name] - before.parameters[name]).abs().amax()
            size = before.parameters[name].abs()
            error = (made.parameters[name] - expected.parameters[name]).abs()
            assert (error <= 1e-4 * moved + 1e-6 * size).all(), (name, float(error.max()))
        assert (made.state.latent - expected.state.latent).abs().max() < 5e-5


def test_untrained_weights_step_as_the_native_adam() -> None:
    sequence = random_sequence(200, 6, rest=15)
    network = LearnedNetwork(SMALL)
    run, passes = start(sequence, network), FusedNetwork(network)
    expected = {name: value.clone() for name, value in run.parameters.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    for number, (gradient, loss, seen) in enumerate(evaluations(sequence), start=1):
        natively(passes, run, gradient, loss, seen)
        for name, value in expected.items():
            native.adam_step(
                value,
                gradient[name].float(),
                *moments[name],
                rate=RATES.of(name, SCALE) / (1 + (number - 1) / RATES.patience),
                beta1=RATES.beta1,
                beta2=RATES.beta2,
                epsilon=RATES.epsilon,
                step=number,
                threads=1,
            )
            moved = (value - sequence.parameters[name]).abs().max()
            error = (run.parameters[name] - value).abs()
            assert (error <= 1e-6 * moved + 2e-7 * number * value.abs()).all(), (name, number)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("which", ["sizes.bias", "latent.weight", "enter.weight", "pool.2.bias", "norm.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_gives_no_numbers_steps_as_adam(monkeypatch, isa, which, value) -> None:
    workers = native.workers(1, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    parameter = dict(network.named_parameters())[which]
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    sequence = random_sequence(70, 2, unseen=0.2)
    made = start(sequence, network)
    expected = made.to(torch.float32)
    for gradient, loss, seen in evaluations(sequence):
        before = made.to(torch.float64)
        natively(FusedNetwork(network), made, gradient, loss, seen)
        in_torch(network, expected, gradient, loss, seen)
        assert torch.isfinite(expected.parameters["means"]).all()
        assert_same_step(made, expected.to(torch.float64), before)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_whose_numbers_overflow_step_as_adam_and_others_as_the_network(monkeypatch, isa) -> None:
    workers = native.workers(1, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    options = replace(SMALL, width=4)
    network = stirred(LearnedNetwork(options), size=0.1)
    with torch.no_grad():
        network.scale[2].weight.fill_(3e38)
        network.scale[0].bias.sub_(0.5)
    sequence = random_sequence(200, 1)
    made = start(sequence, network)
    made.state.latent.fill_(0.1)
    expected = made.to(torch.float32)
    ((gradient, loss, seen),) = evaluations(sequence)
    before = made.to(torch.float64)
    natively(FusedNetwork(network), made, gradient, loss, seen)
    in_torch(network, expected, gradient, loss, seen)
    broken = (expected.state.latent == 0).all(dim=1)
    assert 10 < int(broken.sum()) < 190
    assert torch.equal((made.state.latent == 0).all(dim=1), broken)
    assert_same_step(made, expected.to(torch.float64), before)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    options = replace(SIZES["tiny"], blocks=2)
    network = stirred(LearnedNetwork(options), size=0.1)
    sequence = random_sequence(3000, 3, unseen=0.2)
    runs = []
    for threads in (1, 2, 3):
        run, passes = start(sequence, network), FusedNetwork(network, threads)
        for gradient, loss, seen in evaluations(sequence):
            natively(passes, run, gradient, loss, seen)
        runs.append(run)
    for other in runs[1:]:
        for name in GAUSSIAN_TENSORS:
            assert torch.equal(other.parameters[name], runs[0].parameters[name]), name
        for name, value in runs[0].state.tensors().items():
            assert torch.equal(other.state.tensors()[name], value), name


def test_buffers_follow_scenes_that_grow_and_shrink_and_are_not_seen_at_all() -> None:
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    used = FusedNetwork(network)
    for rows, unseen in ((50, 0.0), (400, 0.9), (7, 0.0), (90, 1.1)):
        sequence = random_sequence(rows, 1, unseen=unseen)
        ((gradient, loss, seen),) = evaluations(sequence)
        one, other = start(sequence, network), start(sequence, network)
        natively(used, one, gradient, loss, seen)
        natively(FusedNetwork(network), other, gradient, loss, seen)
        for name in GAUSSIAN_TENSORS:
            assert torch.equal(one.parameters[name], other.parameters[name])
        if unseen > 1:
            assert torch.equal(one.parameters["means"], sequence.parameters["means"].float())


def test_a_scene_pruned_below_its_neighbours_goes_on_without_them() -> None:
    network = stirred(LearnedNetwork(SMALL), size=0.1)
    exact = stirred(LearnedNetwork(SMALL), size=0.1).double()
    sequence = random_sequence(9, 1)
    made = replace(start(sequence, network), near=torch.zeros(9, 0, dtype=torch.int64))
    expected, before = made.to(torch.float64), made.to(torch.float64)
    ((gradient, loss, seen),) = evaluations(sequence)
    natively(FusedNetwork(network), made, gradient, loss, seen)
    in_torch(exact, expected, gradient, loss, seen)
    assert_same_step(made, expected, before)


def test_what_does_not_fit_is_refused() -> None:
    network = LearnedNetwork(SMALL)
    packed = pack(network)
    shape = {"width": 8, "blocks": 1, "latent": 3, "attention": 4, "scene": 18, "attends": True, "scales": True}
    native.learned_passes(packed, **shape)
    for wrong, message in ((packed[:-1], "too short"), (torch.cat([packed, packed[:8]]), "too long")):
        with pytest.raises(ValueError, match=message):
            native.learned_passes(wrong, **shape)
    sequence = random_sequence(20, 1)
    ((gradient, loss, seen),) = evaluations(sequence)
    run, passes = start(sequence, network), FusedNetwork(network)
    with pytest.raises(ValueError, match="near must name rows"):
        natively(passes, replace(run, near=run.near + 20), gradient, loss, seen)
    with pytest.raises(ValueError, match="near must name rows"):
        natively(passes, replace(run, near=run.near - 20), gradient, loss, seen)
    with pytest.raises(ValueError, match="scene's inputs"):
        natively(passes, run, gradient, loss, seen, clocked=True)


def learned(tmp_path, dtype=torch.float32) -> tuple[Quadratic, Learned]:
    path = tmp_path / "weights.safetensors"
    save_weights(path, stirred(LearnedNetwork(SMALL), size=0.1), RATES, {})
    objective = Quadratic(rows=40, spread=3.0, gaussians=True, dtype=dtype)
    optimizer = Learned(objective, LearnedOptions(str(path), neighbour_refresh=3))
    optimizer.threads = 2
    return objective, optimizer


def test_the_optimizer_takes_the_native_passes_where_they_fit(tmp_path, monkeypatch) -> None:
    taken = []
    original = fused_module.FusedNetwork.step
    monkeypatch.setattr(fused_module.FusedNetwork, "step", lambda *args: taken.append(1) or original(*args))

    def run(dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
        taken.clear()
        objective, optimizer = learned(tmp_path, dtype)
        metrics = [optimizer.step(None, Progress(step, 100)).metrics["fallback"] for step in range(8)]
        assert metrics == [0.0] * 8
        return objective.parameters, len(taken)

    natively_made, count = run(torch.float32)
    assert count == 8
    assert run(torch.float64)[1] == 0
    monkeypatch.setattr(learned_module, "fits", lambda *args: False)
    made_in_torch, count = run(torch.float32)
    assert count == 0
    for name in GAUSSIAN_TENSORS:
        torch.testing.assert_close(natively_made[name], made_in_torch[name], rtol=1e-5, atol=1e-5)
        assert not torch.equal(natively_made[name], learned(tmp_path)[0].parameters[name])
