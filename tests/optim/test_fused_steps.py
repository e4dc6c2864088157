"""The fused native passes against the same steps in torch, in float64, for every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from optim.awkward import AwkwardCloud, check_indefinite_blocks, flattened
from splatopt.core import native
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.schema import GAUSSIAN_TENSORS, PARAMETER_TYPES
from splatopt.core.state import OptimizerState
from splatopt.curvature.blocks import from_lanes, to_lanes, unpack_blocks
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.hellinger import HellingerRadii

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")

ISAS = native.load().supported_isas() if native.available() else []
STEPS = 3


def stepped(name: str, scene: AwkwardCloud, options: dict[str, object], threads: int = 2) -> tuple[dict, dict]:
    """Parameters and states after a few steps."""
    entry = find_optimizer(name)
    optimizer = entry.optimizer(scene, entry.options(**options), torch.Generator().manual_seed(0))
    optimizer.threads = threads
    for step in range(STEPS):
        optimizer.step(None, Progress(step, 10))
    return dict(scene.parameters), dict(optimizer.state().tensors)


CASES = [
    ("sign-tr", {}),
    ("sign-tr", {"mean_variance": "conditional", "epsilon_start": 1e-3}),
    ("adam-tr", {"rate_factor": 30.0}),
    ("tr2-paper", {"estimator": "exact", "refresh": 2}),
    ("tr2", {"refresh": 2, "curvature_factor": 3.0, "damping": 0.0}),
    ("tr2", {"refresh": 2}),
    ("tr2", {"epsilon_start": 0.3, "max_relative_distance": 0.9}),
]


@pytest.mark.parametrize(("rows", "rest"), [(37, 15), (16, 0), (5, 3), (1100, 8)])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_fused_pass_is_the_step(monkeypatch, isa, name, options, rows, rest) -> None:
    expected, expected_states = stepped(name, AwkwardCloud(torch.float64, rows, rest), options)
    start = AwkwardCloud(torch.float64, rows, rest).values
    workers = native.workers(2, isa)
    used = []
    monkeypatch.setattr(native, "workers", lambda threads, _: used.append(threads) or workers)
    values, states = stepped(name, AwkwardCloud(torch.float32, rows, rest), options)
    assert used, "the fused pass was not taken"
    for tensor in GAUSSIAN_TENSORS:
        if not start[tensor].numel():
            continue
        # A share of the step, and what float32 itself loses of a row.
        moved = (expected[tensor] - start[tensor]).abs()
        size = start[tensor].abs().view(rows, -1).amax(dim=1).view(rows, *[1] * (moved.dim() - 1))
        allowed = 5e-4 * moved + 1e-6 * size
        error = (values[tensor].double() - expected[tensor]).abs()
        assert (error <= allowed).all(), (tensor, float((error / allowed).max()))
    for key, state in expected_states.items():
        torch.testing.assert_close(states[key].double(), state.double(), rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("rest", [0, 3, 15])
@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("reach", [(1.0, 1.0, 1.0), (0.5, 0.25, 0.7)])
@pytest.mark.parametrize("isa", ISAS)
def test_a_fused_step_with_blocks_is_as_good_as_the_one_in_float64(monkeypatch, isa, reach, damping, rest) -> None:
    """Steps of blocks of low rank differ in float32, but what they take off the model must not."""
    rows = 300
    options = BlockGaussNewtonOptions(factorisations=12, damping=damping, epsilon_start=1e-2, overlap=0.5)
    workers = native.workers(2, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    start = AwkwardCloud(torch.float64, rows, rest)
    evaluation = start.gradient(None)
    gradient, blocks = flattened(evaluation.gradient), unpack_blocks(start.gauss_newton_blocks(None).blocks)
    factors = {name: factor for group, factor in zip(PARAMETER_TYPES, reach, strict=True) for name in group}
    radii = HellingerRadii(options, start.length_scale).radii(start.values, options.epsilon_start, factors)
    eta = flattened({name: value.expand_as(start.values[name]) for name, value in radii.items()})
    seen = evaluation.seen & (blocks.diagonal(dim1=1, dim2=2).sum(dim=1) > 0)
    floor = damping * (gradient * eta)[evaluation.seen].norm(dim=1).mean()
    # The first step is made with κ = 8.
    assert 0.5 < seen.double().mean() < 0.8
    models = {}
    for dtype in (torch.float64, torch.float32):
        scene = AwkwardCloud(dtype, rows, rest)
        before = {name: value.clone() for name, value in scene.values.items()}
        optimizer = BlockGaussNewton(scene, options)
        kept = {f"radius_factors.{group}.factor": factor for group, factor in enumerate(reach)}
        state = optimizer.state()
        optimizer.load_state(OptimizerState(state.tensors, {**state.scalars, **kept}))
        optimizer.step(None, Progress(0, 10))
        step = flattened(scene.values) - flattened(before)
        assert (step[~seen] == 0).all(), "a row that was not seen, or has no curvature, must stay"
        rest_step = (scene.values["sh_rest"] - before["sh_rest"]).double()
        models[dtype] = (step, rest_step)
        # Turned quaternions keep their lengths, which no model sees.
        assert ((step / eta)[:, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]].norm(dim=1) < 1 + 1e-3).all()
    steps = {dtype: step for dtype, (step, _) in models.items()}

    def value(step: Tensor) -> Tensor:
        quadratic = 0.5 * 8 * 0.5 * torch.einsum("ni,nij,nj->n", step, blocks, step)
        return (gradient * step).sum(dim=1) + quadratic + 0.5 * floor * (step / eta).square().sum(dim=1)

    exact, fused = value(steps[torch.float64])[seen], value(steps[torch.float32])[seen]
    assert (exact < 0).double().mean() > 0.85, "all but where the turning back of a length costs more"
    error = (fused - exact).abs() / (exact.abs() + 1e-4 * exact.abs().mean())
    assert error.median() < 1e-3, error.median()
    assert error.quantile(0.9) < 0.05, error.quantile(0.9)
    torch.testing.assert_close(models[torch.float32][1], models[torch.float64][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_that_rounding_made_indefinite_break_no_row(monkeypatch, isa) -> None:
    workers = native.workers(2, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    check_indefinite_blocks("cpu")


class Louder(AwkwardCloud):
    """Rows without curvature have the largest gradients."""

    def gradient(self, batch: object) -> Evaluation:
        evaluation = super().gradient(batch)
        known = unpack_blocks(self.gauss_newton_blocks(batch).blocks).diagonal(dim1=1, dim2=2).sum(dim=1) > 0
        assert 0 < int(known.sum()) < len(known)
        factor = torch.where(known, 1.0, 100.0)
        gradient = {
            name: value * factor.view(-1, *[1] * (value.dim() - 1)) for name, value in evaluation.gradient.items()
        }
        return replace(evaluation, gradient=gradient)


def test_what_damps_a_step_is_the_mean_over_all_rows_seen_whether_they_may_move_or_not() -> None:
    predictions = {}
    for dtype in (torch.float64, torch.float32):
        optimizer = BlockGaussNewton(Louder(dtype, 60, 3), BlockGaussNewtonOptions())
        predictions[dtype] = []
        for step in range(3):
            optimizer.step(None, Progress(step, 10))
            predictions[dtype].append(optimizer.state().scalars["predicted"])
    assert predictions[torch.float32] == pytest.approx(predictions[torch.float64], rel=1e-4)


@pytest.mark.parametrize("rows", [1, 16, 83])
def test_blocks_in_lanes_come_back_as_they_were(rows) -> None:
    blocks = torch.rand(rows, 105, generator=torch.Generator().manual_seed(0))
    lanes = to_lanes(blocks)
    assert lanes.shape == (-(-rows // 16), 105, 16)
    assert torch.equal(from_lanes(lanes, rows), blocks)
    assert torch.equal(lanes[(rows - 1) // 16, :, (rows - 1) % 16], blocks[-1])


def test_kept_blocks_and_their_form_are_those_of_torch() -> None:
    rows = 83
    scene = AwkwardCloud(torch.float32, rows, 3)
    kept, fresh = (scene.gauss_newton_blocks(None).blocks * factor for factor in (1.0, 0.3))
    fresh = fresh.flip(0).contiguous()
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(0))
    folded = kept.clone()
    native.workers(2).fold_blocks(folded, fresh, weights)
    torch.testing.assert_close(folded, kept.lerp(fresh, weights[:, None]))
    step = {name: value.contiguous() for name, value in scene.values.items()}
    d = flattened(step)
    blocks = unpack_blocks(fresh.double())
    expected = torch.einsum("ni,nij,nj->", d, blocks, d)
    color = blocks.diagonal(dim1=1, dim2=2)[:, None, 11:]
    expected += (4 * color * step["sh_rest"].double().square()).sum()
    form = native.workers(2).block_form(fresh, native.cloud_tensors(step))
    assert form == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["sign-tr", "adam-tr", "tr2", "block-gn"])
def test_the_bits_do_not_depend_on_the_number_of_threads(name) -> None:
    one, two = (stepped(name, AwkwardCloud(torch.float32, 5000, 3), {}, threads)[0] for threads in (1, 2))
    for tensor in GAUSSIAN_TENSORS:
        assert torch.equal(one[tensor], two[tensor])


@pytest.mark.parametrize("name", ["sign-tr", "adam-tr", "tr2", "tr2-paper", "block-gn"])
def test_quaternions_keep_their_lengths(name) -> None:
    scene = AwkwardCloud(torch.float32, 500, 0)
    before = scene.values["quats"].double().norm(dim=1)
    start = scene.values["quats"].clone()
    values, _ = stepped(name, scene, {})
    torch.testing.assert_close(values["quats"].double().norm(dim=1), before, rtol=1e-6, atol=0)
    assert not torch.equal(values["quats"], start)
