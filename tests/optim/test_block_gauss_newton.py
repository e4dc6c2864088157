"""Block Gauss-Newton: the solver against the optimality conditions, the step against dense algebra, the state."""

from __future__ import annotations

import math

import pytest
import torch

from optim.coupled import WIDTHS, Coupled
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, GaussNewtonBlocks, MissingOracleError, Oracle, Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.scene_edit import SceneEdit
from splatopt.curvature.blocks import pack_blocks, unpack_blocks
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.optim.hellinger import HellingerRadii
from splatopt.optim.parts.blocks import solve_in_balls


def problems(count: int = 400, size: int = 14, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(7)
    root = torch.randn(count, size, size + 3, generator=generator, dtype=torch.float64)
    root *= 10 ** torch.empty(count, size, 1, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    gradient = torch.randn(count, size, generator=generator, dtype=torch.float64)
    gradient *= 10 ** torch.empty(count, 1, dtype=torch.float64).uniform_(-3, 2, generator=generator)
    radii = torch.empty(count, size, dtype=torch.float64).uniform_(0.01, 0.3, generator=generator)
    return tuple(part.to(dtype) for part in (root @ root.mT, gradient, radii))


@pytest.mark.parametrize("damping", [0.0, 3.0])
def test_the_solver_meets_the_conditions_of_the_optimum(damping: float) -> None:
    blocks, gradient, radii = problems()
    multipliers = torch.zeros(len(blocks), dtype=torch.float64)
    step = solve_in_balls(pack_blocks(blocks), gradient, radii, 2.0, damping, multipliers, 30)
    length = (step / radii).norm(dim=1)
    inside = multipliers == damping
    assert 0.1 < inside.double().mean() < 0.95, "both kinds of optimum must be among the problems"
    assert multipliers.min() >= damping
    assert length.max() < 1 + 1e-5
    assert (length[~inside] - 1).abs().max() < 1e-3
    # (s B + (μ + 1e-6·tr) diag(1/η²)) d = -g, tr the trace of s·ηBη
    trace = 2 * (blocks.diagonal(dim1=1, dim2=2) * radii**2).sum(dim=1)
    left = 2 * (blocks @ step[:, :, None]).squeeze(2)
    left += (multipliers + 1e-6 * trace)[:, None] * step / radii**2
    error = (radii * (left + gradient)).norm(dim=1) / (radii * gradient).norm(dim=1)
    assert error.max() < 1e-4


def test_a_row_without_curvature_stays_and_disturbs_no_other() -> None:
    def moved(objective: Coupled) -> Tensors:
        before = {name: value.clone() for name, value in objective.values.items()}
        BlockGaussNewton(objective, BlockGaussNewtonOptions(damping=0.0)).step(None, Progress(0, 100))
        return {name: value - before[name] for name, value in objective.values.items()}

    class Flat(Coupled):
        def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
            whole = super().gauss_newton_blocks(batch)
            whole.blocks[2] = 0
            return whole

    others = [0, 1, 3, 4]
    usual, flat = moved(Coupled()), moved(Flat())
    for name, step in flat.items():
        assert step[2].abs().max() == 0, name
        assert step[others].abs().min() > 0, name
        torch.testing.assert_close(step[others], usual[name][others])


def test_damping_keeps_rows_of_little_predicted_reduction_well_inside_their_balls() -> None:
    blocks, gradient, radii = problems()
    predicted = (gradient * radii).norm(dim=1)
    packed, scale = pack_blocks(blocks), 1e-6  # hardly any curvature: all would go to the end of their radius
    lengths = []
    for damping in (0.0, float(predicted.mean())):
        multipliers = torch.zeros(len(blocks), dtype=torch.float64)
        step = solve_in_balls(packed, gradient, radii, scale, damping, multipliers, 30)
        lengths.append((step / radii).norm(dim=1))
    free, damped = lengths
    torch.testing.assert_close(damped, torch.minimum(free, predicted / predicted.mean()), rtol=1e-3, atol=1e-6)
    assert (damped < 0.5).any()


def test_the_first_step_is_the_balls_minimum_of_each_rows_model() -> None:
    objective = Coupled()
    options = BlockGaussNewtonOptions(factorisations=40)
    before = {name: value.clone() for name, value in objective.values.items()}
    evaluation = objective.gradient(None)
    blocks = objective.gauss_newton_blocks(None)
    optimizer = BlockGaussNewton(objective, options)
    optimizer.step(None, Progress(0, 100))
    columns = [objective.values[n].reshape(6, -1) - before[n].reshape(6, -1) for n in WIDTHS]
    taken = torch.cat(columns, dim=1)
    gradient = torch.cat([evaluation.gradient[n].reshape(6, -1) for n in WIDTHS], dim=1)
    radii = HellingerRadii(options, objective.length_scale).radii(before, options.epsilon_start)
    eta = torch.cat([radii[n].expand_as(before[n]).reshape(6, -1) for n in WIDTHS], dim=1)
    damping = options.damping * float((gradient * eta)[:5].norm(dim=1).mean())
    scale = options.overlap * 8.0  # κ before it has been measured
    expected = solve_in_balls(blocks.blocks, gradient, eta, scale, damping, torch.zeros(6, dtype=torch.float64), 40)
    # Quaternions take the step and are then brought back to the length that they had.
    rotated = before["quats"] + expected[:, 6:10]
    rotated *= before["quats"].norm(dim=1, keepdim=True) / rotated.norm(dim=1, keepdim=True)
    expected[:, 6:10] = rotated - before["quats"]
    torch.testing.assert_close(taken[:5], expected[:5], rtol=1e-9, atol=1e-12)
    assert taken[5].abs().max() == 0, "a row that was not seen must stay"
    rest = objective.values["sh_rest"] - before["sh_rest"]
    bound = radii["sh_rest"].expand_as(rest)
    color = unpack_blocks(blocks.blocks).diagonal(dim1=1, dim2=2)[:, None, 11:]
    newton = -evaluation.gradient["sh_rest"] / (scale * 4 * color.clamp_min(1e-30))
    torch.testing.assert_close(rest[:5], torch.maximum(torch.minimum(newton, bound), -bound)[:5])


def test_it_descends_and_measures_the_overlap() -> None:
    objective = Coupled()
    optimizer = BlockGaussNewton(objective, BlockGaussNewtonOptions(refresh=2, epsilon_end=1e-4))
    first = objective.gradient(None).loss
    for step in range(60):
        optimizer.step(None, Progress(step, 60))
    assert objective.gradient(None).loss < 0.2 * first
    # κ of the last step on the whole J, which a running mean follows.
    assert 1.0 <= optimizer.direction.overlap_factor < 20.0
    assert optimizer.state().scalars["kappa"] > 0


def test_every_second_look_at_the_curvature_measures_the_overlap() -> None:
    asked = []

    class Asked(Coupled):
        def gauss_newton_form(self, batch: object, tangent: Tensors) -> float:
            asked.append(optimizer.state().scalars["steps"])
            return super().gauss_newton_form(batch, tangent)

    optimizer = BlockGaussNewton(Asked(), BlockGaussNewtonOptions(refresh=3))
    kappas = []
    for step in range(14):
        optimizer.step(None, Progress(step, 14))
        kappas.append(optimizer.direction.overlap_factor)
    assert asked == [1, 7, 13]
    assert [step + 1 for step in range(1, 14) if kappas[step] != kappas[step - 1]] == asked[1:]


def test_a_band_that_comes_later_moves_as_one_that_was_there() -> None:
    """The curvature of the higher bands is known before they have a gradient."""

    class Later(Coupled):
        has_bands = False

        def gradient(self, batch: object) -> Evaluation:
            whole = super().gradient(batch)
            if not self.has_bands:
                whole.gradient["sh_rest"].zero_()
            return whole

        def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
            whole = super().gauss_newton_blocks(batch)
            if not self.has_bands:
                whole.diagonal["sh_rest"].zero_()
            return whole

    objective = Later()
    options = BlockGaussNewtonOptions(momentum=0.5)
    optimizer = BlockGaussNewton(objective, options)
    for step in range(15):
        optimizer.step(None, Progress(step, 100))
    assert objective.values["sh_rest"].equal(Coupled().values["sh_rest"]), "a band without a gradient must stay"
    objective.has_bands = True
    before = objective.values["sh_rest"].clone()
    color = unpack_blocks(objective.gauss_newton_blocks(None).blocks).diagonal(dim1=1, dim2=2)[:5, None, 11:]
    evaluation = objective.gradient(None)
    optimizer.step(None, Progress(15, 100))
    moved = (objective.values["sh_rest"] - before)[:5]
    correction = 0.5 / (1 - 0.5**16)
    newton = -correction * evaluation.gradient["sh_rest"][:5] / (optimizer.direction.scale * 4 * color)
    radii = HellingerRadii(options, objective.length_scale).radii(objective.values, options.distance(Progress(15, 100)))
    inside = newton.abs() < 0.5 * radii["sh_rest"][:5]
    assert inside.sum() > 5, "some must stay within their radius"
    torch.testing.assert_close(moved[inside], newton[inside])


def test_saving_and_loading_goes_on_bit_exactly() -> None:
    straight, broken = Coupled(), Coupled()
    options = BlockGaussNewtonOptions(refresh=3)
    one, two = BlockGaussNewton(straight, options), BlockGaussNewton(broken, options)
    for step in range(7):
        one.step(None, Progress(step, 20))
        two.step(None, Progress(step, 20))
    resumed = BlockGaussNewton(broken, options)
    resumed.load_state(two.state())
    for step in range(7, 12):
        one.step(None, Progress(step, 20))
        resumed.step(None, Progress(step, 20))
    assert all(torch.equal(straight.values[name], broken.values[name]) for name in straight.values)


def test_row_edits_gather_the_state_and_start_fresh_rows_anew() -> None:
    objective = Coupled()
    optimizer = BlockGaussNewton(objective, BlockGaussNewtonOptions())
    optimizer.step(None, Progress(0, 20))
    before = {name: tensor.clone() for name, tensor in optimizer.state().tensors.items()}
    edit = SceneEdit(torch.tensor([2, 0, 0]), torch.tensor([False, False, True]))
    objective.values = {name: edit.gather(value) for name, value in objective.values.items()}
    optimizer.edit_rows(edit)
    for name, tensor in optimizer.state().tensors.items():
        assert torch.equal(tensor[:2], before[name][[2, 0]]), name
        if name == "growth.largest":  # how large a row may become, from what it is
            assert tensor[2] == objective.values["log_scales"][2].max() + math.log(16)
        else:
            assert tensor[2].abs().max() == 0, name


def test_bad_options_and_missing_oracles_are_refused() -> None:
    for bad in (
        {"epsilon_start": 0.0},
        {"epsilon_end": -1.0},
        {"overlap": 0.0},
        {"damping": -1.0},
        {"momentum": 1.0},
        {"refresh": 0},
        {"max_growth": 0.5},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BlockGaussNewtonOptions(**bad)

    class Plain(Coupled):
        @property
        def oracles(self) -> frozenset[Oracle]:
            return frozenset({Oracle.GRADIENT})

    with pytest.raises(MissingOracleError, match="gauss_newton_blocks"):
        BlockGaussNewton(Plain(), BlockGaussNewtonOptions())
    other = Adam(Coupled(), AdamOptions())
    with pytest.raises(InputError, match="not a state of the run's optimizer: it holds no"):
        BlockGaussNewton(Coupled(), BlockGaussNewtonOptions()).load_state(other.state())
