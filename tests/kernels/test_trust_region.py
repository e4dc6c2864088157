"""The fused steps on the GPU (or interpreted) against the same steps in torch, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from optim.awkward import AwkwardCloud, check_indefinite_blocks, flattened
from splatopt import kernels
from splatopt.core import native
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.schema import GAUSSIAN_TENSORS, PARAMETER_TYPES, GaussianTensors
from splatopt.curvature.blocks import from_lanes, pack_blocks, to_lanes, unpack_blocks
from splatopt.kernels import block_step, trust_region
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.fused import fused_passes
from splatopt.optim.hellinger import HellingerRadii
from splatopt.optim.parts.blocks import solve_in_balls

STEPS = 2


@pytest.fixture(autouse=True)
def kernels_take_all(monkeypatch):
    """Float32 tensors take the kernels wherever they lie, in several programs."""
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(kernels, "takes", lambda tensors: all(value.dtype == torch.float32 for value in tensors))
    monkeypatch.setattr(trust_region, "ROWS", 16)
    monkeypatch.setattr(trust_region, "COEFFICIENTS", 128)


def stepped(name: str, scene: AwkwardCloud, options: dict[str, object]) -> tuple[dict, dict, dict]:
    """Parameters and states after a few steps."""
    entry = find_optimizer(name)
    optimizer = entry.optimizer(scene, entry.options(**options), torch.Generator().manual_seed(0))
    for step in range(STEPS):
        optimizer.step(None, Progress(step, 10))
    state = optimizer.state()
    return dict(scene.parameters), dict(state.tensors), dict(state.scalars)


def furthest(found: dict, expected: dict, start: dict, rows: int) -> float:
    """The largest error over what is allowed: a share of the step, and what float32 itself loses of a row."""
    worst = 0.0
    for tensor in GAUSSIAN_TENSORS:
        if start[tensor].numel():
            moved = (expected[tensor] - start[tensor]).abs()
            size = start[tensor].abs().view(rows, -1).amax(dim=1).view(rows, *[1] * (moved.dim() - 1))
            error = (found[tensor].double().cpu() - expected[tensor]).abs()
            worst = max(worst, float((error / (5e-4 * moved + 1e-6 * size)).max()))
    return worst


CASES = [
    ("sign-tr", {}, 15),
    ("sign-tr", {"mean_variance": "conditional", "epsilon_start": 1e-3, "momentum": 0.5}, 0),
    ("adam-tr", {"rate_factor": 30.0}, 3),
    ("tr2-paper", {"estimator": "exact", "refresh": 2}, 3),
    ("tr2", {"refresh": 2, "curvature_factor": 3.0, "damping": 0.0}, 0),
    ("tr2", {"refresh": 2, "higher_bands": 0.5}, 15),
    ("tr2", {"epsilon_start": 0.3, "max_relative_distance": 0.9, "color_floor": 0.2, "opacity_floor": 0.1}, 0),
    ("tr2", dict.fromkeys(("max_mean", "max_log_scale", "max_quat", "max_logit", "max_color"), 1e-3), 3),
]


@pytest.mark.parametrize(("name", "options", "rest"), CASES)
def test_the_fused_pass_is_the_step(device, name, options, rest):
    rows = 19
    expected, expected_states, scalars = stepped(name, AwkwardCloud(torch.float64, rows, rest), options)
    start = AwkwardCloud(torch.float64, rows, rest).values
    values, states, found = stepped(name, AwkwardCloud(torch.float32, rows, rest, device), options)
    assert furthest(values, expected, start, rows) <= 1
    for key, state in expected_states.items():
        torch.testing.assert_close(states[key].double().cpu(), state.double(), rtol=1e-4, atol=1e-6, msg=key)
    for key, number in scalars.items():
        assert found[key] == pytest.approx(number, rel=1e-4), key


def test_the_comparison_sees_a_wrong_radius(device):
    rows = 19
    expected, *_ = stepped("sign-tr", AwkwardCloud(torch.float64, rows, 0), {})
    values, *_ = stepped("sign-tr", AwkwardCloud(torch.float32, rows, 0, device), {"color_floor": 0.0101})
    assert furthest(values, expected, AwkwardCloud(torch.float64, rows, 0).values, rows) > 1


def test_the_kernels_are_taken(device, monkeypatch):
    """Without this the comparisons above might be of torch with torch."""
    taken = []
    monkeypatch.setattr("splatopt.kernels.steps.sign_step", lambda *args, **numbers: taken.append(numbers))
    stepped("sign-tr", AwkwardCloud(torch.float32, 3 + 2, 0, device), {})
    assert taken == [{"decay": 0.9}] * STEPS


def test_quaternions_keep_their_lengths(device):
    scene = AwkwardCloud(torch.float32, 40, 0, device)
    before = scene.values["quats"].clone()
    values, *_ = stepped("sign-tr", scene, {})
    torch.testing.assert_close(values["quats"].norm(dim=1), before.norm(dim=1), rtol=1e-6, atol=0)
    assert not torch.equal(values["quats"], before)


def block_steps(
    dtype: torch.dtype, rows: int, rest: int, options: BlockGaussNewtonOptions, device: object
) -> AwkwardCloud:
    scene = AwkwardCloud(dtype, rows, rest, device)
    BlockGaussNewton(scene, options).step(None, Progress(0, 10))
    return scene


@pytest.mark.parametrize(("damping", "rest"), [(0.0, 0), (0.7, 3)])
def test_a_fused_step_with_blocks_is_as_good_as_the_one_in_float64(device, damping, rest):
    """Steps of blocks of low rank differ in float32, but what they take off the model must not."""
    rows = 70
    options = BlockGaussNewtonOptions(factorisations=4, damping=damping, epsilon_start=1e-2, overlap=0.5)
    start = AwkwardCloud(torch.float64, rows, rest)
    evaluation = start.gradient(None)
    gradient, blocks = flattened(evaluation.gradient), unpack_blocks(start.gauss_newton_blocks(None).blocks)
    radii = HellingerRadii(options, start.length_scale).radii(start.values, options.epsilon_start)
    eta = flattened({name: value.expand_as(start.values[name]) for name, value in radii.items()})
    seen = evaluation.seen & (blocks.diagonal(dim1=1, dim2=2).sum(dim=1) > 0)
    assert 0.5 < seen.double().mean() < 0.8
    floor = damping * (gradient * eta)[evaluation.seen].norm(dim=1).mean()
    scenes = {
        torch.float64: block_steps(torch.float64, rows, rest, options, "cpu"),
        torch.float32: block_steps(torch.float32, rows, rest, options, device),
    }
    steps = {dtype: flattened(scene.values) - flattened(start.values) for dtype, scene in scenes.items()}
    steps[torch.float32] = flattened(scenes[torch.float32].values) - flattened(
        {name: value.float() for name, value in start.values.items()}
    )
    for step in steps.values():
        assert (step[~seen] == 0).all(), "a row that was not seen, or has no curvature, must stay"
        # Turned quaternions keep their lengths, which no model sees.
        assert ((step / eta)[:, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]].norm(dim=1) < 1 + 1e-3).all()

    def value(step: Tensor) -> Tensor:
        quadratic = 0.5 * 8 * 0.5 * torch.einsum("ni,nij,nj->n", step, blocks, step)
        return (gradient * step).sum(dim=1) + quadratic + 0.5 * floor * (step / eta).square().sum(dim=1)

    exact, fused = (value(steps[dtype])[seen] for dtype in (torch.float64, torch.float32))
    error = (fused - exact).abs() / (exact.abs() + 1e-4 * exact.abs().mean())
    assert error.median() < 1e-3, error.median()
    assert error.quantile(0.9) < 0.05, error.quantile(0.9)
    rests = {dtype: scene.values["sh_rest"].double().cpu() for dtype, scene in scenes.items()}
    torch.testing.assert_close(rests[torch.float32], rests[torch.float64], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reach", [(1.0, 1.0, 1.0), (2.0, 1.5, 1.2)])
def test_full_blocks_give_the_step_of_torch(device, reach):
    """Of blocks of full rank the step itself agrees, from the kept multipliers too, with every row seen."""
    rows = 40
    generator = torch.Generator().manual_seed(1)
    exact = AwkwardCloud(torch.float64, rows, 3)
    roots = torch.randn(rows, 14, 30, generator=generator, dtype=torch.float64)
    # ε/α up to 0.02, so that steps are long beside float32's rounding.
    options = BlockGaussNewtonOptions(factorisations=2, damping=0.3, epsilon_start=1e-2, max_relative_distance=0.02)
    kept = pack_blocks(roots @ roots.mT)
    evaluation = exact.gradient(None)
    gradient = {name: value.float() for name, value in evaluation.gradient.items()}
    multipliers = torch.rand(rows, generator=generator).double() * 0.2

    factors = {name: factor for group, factor in zip(PARAMETER_TYPES, reach, strict=True) for name in group}
    radii = HellingerRadii(options, exact.length_scale).radii(exact.values, 1e-2, factors)
    eta = flattened({name: value.expand_as(exact.values[name]) for name, value in radii.items()})
    next_multipliers = multipliers.clone()
    expected = solve_in_balls(kept, flattened(gradient), eta, 0.7, 0.05, next_multipliers, 2)

    scene = AwkwardCloud(torch.float32, rows, 3, device)
    before = flattened(scene.values)
    momentum = {name: torch.zeros_like(value) for name, value in scene.values.items()}
    passes = fused_passes(0, scene.values)
    found = multipliers.float().to(device)
    arguments = [
        HellingerRadii(options, scene.length_scale).fused_bounds(passes, 1e-2, factors),
        *(GaussianTensors.of({n: v.to(device) for n, v in c.items()}) for c in (scene.values, gradient, momentum)),
        to_lanes(kept.float().to(device)),
        None,
        found,
    ]
    numbers = {"decay": 0.9, "scale": 0.7, "damping": 0.05, "factorisations": 2}
    predicted = block_step.block_step(*arguments, correction=1.0, measure_only=True, **numbers)
    assert predicted == pytest.approx(float((flattened(gradient) * eta).norm(dim=1).sum()), rel=1e-5)
    assert torch.equal(flattened(scene.values), before), "measuring must not move anything"
    again = block_step.block_step(*arguments, correction=10.0, **numbers)
    assert again == pytest.approx(predicted, rel=1e-5)
    torch.testing.assert_close(found.double().cpu(), next_multipliers, rtol=1e-3, atol=1e-5)
    others = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]
    step = flattened(scene.values) - before
    torch.testing.assert_close((step / eta)[:, others], (expected / eta)[:, others], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(
        flattened(scene.values, ("quats",)).norm(dim=1), before[:, 6:10].norm(dim=1), rtol=1e-6, atol=0
    )


def test_kept_blocks_and_their_form_are_those_of_torch(device):
    rows = 83
    scene = AwkwardCloud(torch.float32, rows, 3, device)
    kept, fresh = (scene.gauss_newton_blocks(None).blocks * factor for factor in (1.0, 0.3))
    fresh = fresh.flip(0).contiguous()
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(0)).to(device)
    lanes = to_lanes(kept)
    block_step.fold_blocks(lanes, fresh, weights)
    torch.testing.assert_close(from_lanes(lanes, rows), kept.lerp(fresh, weights[:, None]), rtol=1e-5, atol=1e-5)
    d = flattened(scene.values)
    blocks = unpack_blocks(fresh.double().cpu())
    expected = torch.einsum("ni,nij,nj->", d, blocks, d)
    color = blocks.diagonal(dim1=1, dim2=2)[:, None, 11:]
    expected += (4 * color * scene.values["sh_rest"].double().square().cpu()).sum()
    form = block_step.block_form(fresh, GaussianTensors.of(scene.values))
    assert form == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["sign-tr", "tr2", "block-gn", "adam"])
def test_no_rows_are_survived(device, name):
    scene = AwkwardCloud(torch.float32, 5, 3, device)
    scene.values = {key: value[:0].clone() for key, value in scene.values.items()}
    scene.curvature = {key: value[:0] for key, value in scene.curvature.items()}
    stepped(name, scene, {})
    assert scene.values["means"].shape == (0, 3)


@pytest.mark.parametrize("name", ["tr2", "block-gn", "adam"])
def test_a_saved_state_goes_on(device, name):
    """The state that is saved does not tell which passes wrote it: kernels go on where torch stopped."""
    entry = find_optimizer(name)
    scenes = [AwkwardCloud(dtype, 12, 3, place) for dtype, place in ((torch.float64, "cpu"), (torch.float32, device))]
    optimizers = [entry.optimizer(scene, entry.options(), torch.Generator()) for scene in scenes]
    optimizers[0].step(None, Progress(0, 10))
    state = optimizers[0].state()
    narrow = {key: value.float() for key, value in state.tensors.items()}
    optimizers[1].load_state(type(state)(narrow, state.scalars))
    scenes[1].asked = scenes[0].asked
    for key, value in scenes[0].values.items():
        scenes[1].values[key].copy_(value)
    start = {key: value.clone() for key, value in scenes[0].values.items()}
    for optimizer in optimizers:
        optimizer.step(None, Progress(1, 10))
    assert furthest(scenes[1].values, scenes[0].values, start, 12) <= (1 if name != "block-gn" else 100)


def test_blocks_that_rounding_made_indefinite_break_no_row(device):
    check_indefinite_blocks(device)
