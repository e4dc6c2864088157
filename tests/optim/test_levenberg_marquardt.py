"""Levenberg-Marquardt against dense solutions, and what keeps its steps safe."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from optim.views import RESIDUALS, ROWS, VIEWS, Views
from scene.test_photometric_oracles import make as make_scene
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, MissingOracleError, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.state import OptimizerState
from splatopt.optim.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions
from splatopt.raster.render import make_renderer

ALL = tuple(range(VIEWS))
NOW = Progress(0, 10)
WHOLE = {"curvature_share": 1.0, "search_share": 1.0, "iterations": 200, "tolerance": 1e-13}
"""Every view everywhere, and conjugate gradients to the end."""


def make(objective: Views | None = None, **options: Any) -> tuple[Views, LevenbergMarquardt]:
    objective = objective or Views()
    return objective, LevenbergMarquardt(objective, LevenbergMarquardtOptions(**options))


def moved(objective: Views, optimizer: LevenbergMarquardt, batch=ALL) -> tuple[Tensor, Evaluation]:
    """θ after a step minus θ before."""
    before = objective.layout.flatten(objective.parameters)
    evaluation = optimizer.step(batch, NOW)
    return objective.layout.flatten(objective.parameters) - before, evaluation


def solved(objective: Views, views, damping: float, extra: float, curvature_views=None) -> tuple[Tensor, Tensor]:
    """Δ and diag(JᵀJ) by dense algebra; parameters that are no cloud's have 1/η² = 1/8."""
    jacobian = objective.jacobian(views)
    diagonal = jacobian.square().sum(dim=0)
    some = objective.jacobian(curvature_views or views)
    inside = diagonal > 0
    system = (some.T @ some + torch.diag(damping * (diagonal + extra / 8)))[inside][:, inside]
    direction = torch.zeros_like(diagonal)
    direction[inside] = torch.linalg.solve(system, -(jacobian.T @ objective.residual(views))[inside])
    return direction, diagonal


@pytest.mark.parametrize("preconditioner", ["diagonal", "block"])
@pytest.mark.parametrize("extra", [0.0, 0.3])
def test_a_step_solves_the_damped_system(preconditioner, extra):
    objective, optimizer = make(preconditioner=preconditioner, damping_start=0.5, hellinger_damping=extra, **WHOLE)
    expected, _ = solved(objective, ALL, 0.5, extra)
    step, evaluation = moved(objective, optimizer)
    assert evaluation.metrics["step_length"] == 1.0
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-10)


def test_on_a_quadratic_the_model_is_the_loss():
    objective, optimizer = make(damping_start=0.5, **WHOLE)
    for step in range(4):
        before = objective.value(ALL)
        evaluation = optimizer.step(ALL, Progress(step, 4))
        assert evaluation.loss == before
        assert evaluation.metrics["gain_ratio"] == pytest.approx(1.0, rel=1e-6)
        assert evaluation.metrics["damping"] == max(0.5 / 2**step, 0.2)
        assert evaluation.metrics["psnr"] == VIEWS
    assert objective.value(ALL) < before


def test_batches_are_solved_alone_and_weighed_by_their_diagonals():
    objective, optimizer = make(batches=2, damping_start=0.5, hellinger_damping=0.0, **WHOLE)
    parts = [solved(objective, views, 0.5, 0.0) for views in ((0, 2, 4), (1, 3, 5))]
    weights = sum(diagonal for _, diagonal in parts)
    total = sum(direction * diagonal for direction, diagonal in parts)
    expected = torch.where(weights > 0, total / weights, 0)
    gradient = objective.jacobian(ALL).T @ objective.residual(ALL)
    bend = float((objective.jacobian(ALL) @ expected).square().sum())
    before = objective.value(ALL)
    step, evaluation = moved(objective, optimizer)
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-10)
    assert evaluation.loss == pytest.approx(before, rel=1e-12)
    torch.testing.assert_close(objective.layout.flatten(evaluation.gradient), gradient)
    assert evaluation.seen.tolist() == [True, True, True, False]
    change = objective.value(ALL) - before
    assert evaluation.metrics["gain_ratio"] == pytest.approx(change / (float(gradient @ expected) + bend / 2), rel=1e-6)


def test_batches_of_other_sizes_count_by_their_views():
    objective, optimizer = make(batches=2, **WHOLE)
    before = objective.value(ALL[:5])
    gradient = objective.jacobian(ALL[:5]).T @ objective.residual(ALL[:5])
    evaluation = optimizer.step(ALL[:5], NOW)
    assert evaluation.loss == pytest.approx(before, rel=1e-12)
    torch.testing.assert_close(objective.layout.flatten(evaluation.gradient), gradient)


def test_curvature_may_be_of_a_share_of_the_views_that_goes_round():
    objective, optimizer = make(damping_start=3.0, damping_min=3.0, **(WHOLE | {"curvature_share": 0.34}))
    for microbatch in ((0, 3), (1, 4), (2, 5), (0, 3)):
        expected, _ = solved(objective, ALL, 3.0, 1e-4, curvature_views=microbatch)
        objective.multiplied.clear()
        step, evaluation = moved(objective, optimizer)
        assert set(objective.multiplied) == {microbatch}
        torch.testing.assert_close(step, expected * evaluation.metrics["step_length"], rtol=1e-7, atol=1e-9)


def test_so_may_the_line_search():
    objective, optimizer = make(search_share=0.5)
    optimizer.step(ALL, NOW)
    optimizer.step(ALL, NOW)
    assert set(objective.valued) == {(0, 2, 4), (1, 3, 5), ALL}
    assert objective.valued.count(ALL) == 2, "the whole is looked at once a step"


def test_the_number_of_products_is_that_of_iterations():
    objective, optimizer = make(iterations=3)
    optimizer.step(ALL, NOW)
    assert len(objective.multiplied) == 3


class Steep(Views):
    """Its gradient is too steep, so that steps are too long by that factor."""

    factor = 8.0

    def gradient(self, batch) -> Evaluation:
        evaluation = super().gradient(batch)
        steeper = {name: self.factor * value for name, value in evaluation.gradient.items()}
        return replace(evaluation, gradient=steeper)


@pytest.mark.parametrize(("halvings", "length"), [(4, 1 / 8), (3, 1 / 8), (2, 1 / 4)])
def test_the_line_search_halves_for_as_long_as_it_helps(halvings, length):
    objective, optimizer = make(Steep(), damping_start=1e-6, damping_min=1e-6, halvings=halvings, **WHOLE)
    expected, _ = solved(objective, ALL, 1e-6, 0.0)
    step, evaluation = moved(objective, optimizer)
    if length * Steep.factor == 1:
        assert evaluation.metrics["step_length"] == length
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
    else:
        assert evaluation.metrics["step_length"] == 0, "twice the Newton step does not lower a quadratic"
        assert step.count_nonzero() == 0


class Uphill(Views):
    """Its gradient points the wrong way."""

    def gradient(self, batch) -> Evaluation:
        evaluation = super().gradient(batch)
        return replace(evaluation, gradient={name: -value for name, value in evaluation.gradient.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_does_not_help_is_taken_back_bit_for_bit(dtype):
    objective, optimizer = make(Uphill(dtype=dtype), damping_start=1.0, damping_max=3.0)
    before = {name: value.clone() for name, value in objective.parameters.items()}
    for damping in (1.0, 2.0, 3.0, 3.0):
        metrics = optimizer.step(ALL, NOW).metrics
        assert (metrics["damping"], metrics["step_length"]) == (damping, 0.0)
        assert metrics["gain_ratio"] < 0
        for name, value in objective.parameters.items():
            assert torch.equal(value, before[name]), name


def test_rows_that_no_view_sees_stay_bit_for_bit():
    objective, optimizer = make()
    before = {name: value[-1].clone() for name, value in objective.parameters.items()}
    for step in range(3):
        assert optimizer.step(ALL, Progress(step, 3)).metrics["step_length"] > 0
    for name, value in objective.parameters.items():
        assert torch.equal(value[-1], before[name]), name
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("renderer", "preconditioner"), [("native", "diagonal"), ("native", "block"), ("reference", "block")]
)
def test_a_scene_is_polished_and_what_is_behind_all_cameras_stays(renderer, preconditioner):
    if renderer == "native" and not native.available():
        pytest.skip("the native module is not built")
    dtype = torch.float32 if renderer == "native" else torch.float64
    objective = make_scene(renderer=make_renderer(renderer, 1), dtype=dtype)
    objective.cloud.quats.mul_(3.0)
    optimizer = LevenbergMarquardt(
        objective, LevenbergMarquardtOptions(preconditioner=preconditioner, batches=2, iterations=3)
    )
    before = {name: value.clone() for name, value in objective.parameters.items()}
    start = objective.value([0, 1, 2])
    kept = [optimizer.step([0, 1, 2], Progress(step, 2)).metrics["step_length"] > 0 for step in range(2)]
    assert any(kept)
    assert objective.value([0, 1, 2]) < 0.99 * start
    for name, value in objective.parameters.items():
        assert torch.equal(value[5], before[name][5]), name
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value[:5], before[name][:5]), name
    torch.testing.assert_close(objective.cloud.quats.norm(dim=1), before["quats"].norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_where_numbers_break_down_nothing_moves(broken):
    class Broken(Views):
        def gradient(self, batch) -> Evaluation:
            evaluation = super().gradient(batch)
            evaluation.gradient["means"][1, 2] = broken
            return evaluation

    objective, optimizer = make(Broken(), batches=2)
    step, evaluation = moved(objective, optimizer)
    assert step.count_nonzero() == 0
    assert not torch.isfinite(evaluation.gradient["means"]).all(), "whoever runs it shall see"


def test_a_loss_that_breaks_down_on_the_way_is_taken_back():
    class Cliff(Views):
        def value(self, batch) -> float:
            return float("nan")

    objective, optimizer = make(Cliff())
    step, evaluation = moved(objective, optimizer)
    assert step.count_nonzero() == 0
    assert (evaluation.metrics["step_length"], evaluation.metrics["gain_ratio"]) == (0.0, 0.0)


def test_the_state_is_two_numbers():
    _, optimizer = make()
    optimizer.step(ALL, NOW)
    state = optimizer.state()
    assert (dict(state.tensors), dict(state.scalars)) == ({}, {"damping": 1.0, "steps": 1})
    with pytest.raises(InputError, match="holds no damping"):
        optimizer.load_state(OptimizerState({}, {"steps": 3}))


# ---------------------------------------------------------------------- what is asked, and how much it takes


def test_it_asks_for_as_many_views_as_it_is_told():
    assert make()[1].batch_size == 0
    assert make(views=12)[1].batch_size == 12


def test_only_the_block_preconditioner_asks_for_blocks():
    class Blockless(Views):
        @property
        def oracles(self) -> frozenset[Oracle]:
            return frozenset(Oracle) - {Oracle.GAUSS_NEWTON_BLOCKS}

        def gauss_newton_blocks(self, batch):
            raise AssertionError

    with pytest.raises(MissingOracleError, match="block preconditioner.*gauss_newton_blocks"):
        make(Blockless())
    _, optimizer = make(Blockless(), preconditioner="diagonal")
    assert optimizer.step(ALL, NOW).metrics["step_length"] > 0


def test_memory_is_counted_in_parameters_and_one_view():
    _, optimizer = make()
    size, block = 8 * ROWS, 4
    expected = 16 * size + ROWS * (4 * block**2 + block * (block + 1) // 2) + 2 * RESIDUALS
    assert optimizer.memory_needed(ALL) == optimizer.memory_needed(ALL[:1]) == 8 * expected
    assert make(preconditioner="diagonal")[1].memory_needed(ALL) == 8 * (16 * size + 2 * RESIDUALS)


class Huge(Views):
    """Views of 128 MiB of residuals each, in name alone."""

    def empty_residuals(self, batch):
        return tuple(torch.empty(2**24, dtype=torch.float64, device="meta") for _ in batch)


@pytest.mark.parametrize("ask", ["step", "check_batch"])
def test_a_batch_that_does_not_fit_says_what_it_needs(ask):
    objective, optimizer = make(Huge(), memory_mebibytes=200)
    before = objective.layout.flatten(objective.parameters)
    with pytest.raises(InputError, match=r"needs 257 MiB of memory, for 4 rows.*may take 200"):
        optimizer.step(ALL, NOW) if ask == "step" else optimizer.check_batch(ALL)
    assert torch.equal(objective.layout.flatten(objective.parameters), before)
    make(Huge(), memory_mebibytes=257)[1].check_batch(ALL)


def test_without_a_limit_the_machine_is_the_limit_when_a_run_begins(monkeypatch):
    import psutil

    optimizer = make(Huge())[1]
    available = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available._replace(available=100 * 2**20))
    with pytest.raises(InputError, match="needs 257 MiB of memory.*may take 100; take its diagonal preconditioner, "):
        optimizer.check_batch(ALL)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available._replace(available=1))
    small = make()[1]
    assert math.isfinite(small.step(ALL, NOW).loss), "a run is not ended by what others take meanwhile"


def test_what_fits_no_better_is_not_proposed():
    with pytest.raises(InputError) as caught:
        make(Huge(), memory_mebibytes=200, preconditioner="diagonal")[1].check_batch(ALL)
    assert "raise lm's memory_mebibytes, train on smaller" in str(caught.value)
    assert "preconditioner" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": VIEWS + 1}, f"lm's views must be at most the training views, {VIEWS}, got {VIEWS + 1}"),
        ({"batches": VIEWS + 1}, f"lm's batches must be at most the views of a step, {VIEWS}, got {VIEWS + 1}"),
        ({"views": 2, "batches": 3}, "lm's batches must be at most the views of a step, 2, got 3"),
    ],
)
def test_more_views_than_there_are_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        make(**options)[1].check_batch(ALL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"views": -1}, "views must be at least 0, got -1"),
        ({"batches": 0}, "batches must be at least 1, got 0"),
        ({"halvings": -1}, "halvings must be at least 0"),
        ({"memory_mebibytes": -5}, "memory_mebibytes must be at least 0"),
        ({"damping_min": 0.0}, "0 < damping_min"),
        (
            {"damping_min": 3.0},
            "damping_min <= damping_start <= damping_max, all finite, got 3.0, 2.0 and 10000.0",
        ),
        ({"damping_start": 0.0}, "damping_max, all finite, got 0.2, 0.0 and 10000.0"),
        ({"damping_max": 1.0}, "damping_min <= damping_start <= damping_max"),
        ({"damping_max": math.inf}, "all finite, got 0.2, 2.0 and inf"),
        ({"curvature_share": 0.0}, "curvature_share must be above 0 and at most 1"),
        ({"search_share": 1.5}, "search_share must be above 0 and at most 1"),
        ({"tolerance": 1.0}, "tolerance must be at least 0 and below 1"),
        ({"min_gain": -0.1}, "min_gain must be at least 0"),
        ({"hellinger_damping": math.nan}, "hellinger_damping must be a number of at least 0"),
    ],
)
def test_options_without_sense_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        LevenbergMarquardtOptions(**options)
