"""Steps within trust regions against NumPy, and what must not happen where curvature or gradient is missing."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, MissingOracleError, Oracle, Tensors
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes
from splatopt.optim.diagonal_gauss_newton import (
    AdamTrustRegion,
    AdamTrustRegionOptions,
    DiagonalGaussNewton,
    DiagonalGaussNewtonOptions,
    PublishedGaussNewton,
    PublishedGaussNewtonOptions,
    SignTrustRegion,
    SignTrustRegionOptions,
)
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.optim.hellinger import HellingerRadii

NAMES = ("sign-tr", "adam-tr", "tr2-paper", "tr2")


class Cloudlike(Quadratic):
    """The quadratic over a cloud's six tensors; some rows have neither gradient nor curvature, as if unseen."""

    def __init__(self, rows: int = 6, unseen: tuple[int, ...] = ()) -> None:
        super().__init__(rows=rows, dtype=torch.float32)
        generator = torch.Generator().manual_seed(7)
        shapes = {
            "means": (rows, 3),
            "log_scales": (rows, 3),
            "quats": (rows, 4),
            "logit_opacities": (rows,),
            "sh_dc": (rows, 3),
            "sh_rest": (rows, 3, 3),
        }
        self.values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.targets = {name: value + 1 for name, value in self.values.items()}
        self.curvature = {
            name: torch.rand(value.shape, generator=generator) + 0.5 for name, value in self.values.items()
        }
        for curvature in self.curvature.values():
            curvature[list(unseen)] = 0


def numpy_of(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: value.double().numpy().copy() for name, value in tensors.items()}


def two_steps(optimizer, objective: Quadratic) -> list[dict[str, np.ndarray]]:
    """The gradient before each of two steps of a run of four, the values after each."""
    seen = []
    for step in range(2):
        seen.append(numpy_of(objective.gradient(None).gradient))
        optimizer.step(None, Progress(step, 4))
        seen.append(numpy_of(objective.parameters))
    return seen


# A quadratic is no cloud: its radius is √(8ε), with ε going from 1e-2 to 1e-6 over four steps.
START, END = 1e-2, 1e-6
RADII = (np.sqrt(8e-2), np.sqrt(8e-3))


def test_two_steps_of_the_sign():
    objective = Quadratic(dtype=torch.float64)
    before = numpy_of(objective.parameters)
    options = SignTrustRegionOptions(epsilon_start=START, epsilon_end=END, momentum=0.8)
    first_gradient, first, second_gradient, second = two_steps(SignTrustRegion(objective, options), objective)
    for name, start in before.items():
        expected = start - RADII[0] * np.sign(first_gradient[name])
        np.testing.assert_allclose(first[name], expected, rtol=1e-12)
        momentum = 0.8 * 0.2 * first_gradient[name] + 0.2 * second_gradient[name]
        np.testing.assert_allclose(second[name], expected - RADII[1] * np.sign(momentum), rtol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "residual", "parameter"])
@pytest.mark.parametrize(
    ("optimizer", "options", "shares"),
    [
        (PublishedGaussNewton, PublishedGaussNewtonOptions, (1.0, 1.0)),
        (DiagonalGaussNewton, DiagonalGaussNewtonOptions, (1 - 0.6, 1 - 0.6**2)),
    ],
)
def test_two_steps_over_curvature(optimizer, options, shares, estimator):
    """Of this objective every estimator gives diag(c) exactly; it changes before the second measurement."""
    objective = Quadratic(rows=40, dtype=torch.float64)
    before, curvature = numpy_of(objective.parameters), numpy_of(objective.curvature)
    chosen = options(
        epsilon_start=START,
        epsilon_end=END,
        momentum=0.8,
        curvature_decay=0.6,
        curvature_factor=0.3,
        damping=0.0,
        refresh=1,
        estimator=estimator,
    )
    run = optimizer(objective, chosen, torch.Generator().manual_seed(0))
    gradient = numpy_of(objective.gradient(None).gradient)
    run.step(None, Progress(0, 4))
    momentum = {name: 0.2 * value for name, value in gradient.items()}
    mean = {name: 0.4 * value for name, value in curvature.items()}
    expected, clipped = {}, 0
    for name, start in before.items():
        step = momentum[name] * shares[0] / (0.3 * mean[name])
        clipped += int((np.abs(step) > RADII[0]).sum())
        expected[name] = start - np.clip(step, -RADII[0], RADII[0])
        np.testing.assert_allclose(objective.values[name].numpy(), expected[name], rtol=1e-12)
    for value in objective.curvature.values():
        value.mul_(2)
    gradient = numpy_of(objective.gradient(None).gradient)
    run.step(None, Progress(1, 4))
    for name, start in expected.items():
        momentum[name] = 0.8 * momentum[name] + 0.2 * gradient[name]
        mean[name] = 0.6 * mean[name] + 0.4 * 2 * curvature[name]
        step = momentum[name] * shares[1] / (0.3 * mean[name])
        clipped += int((np.abs(step) > RADII[1]).sum())
        np.testing.assert_allclose(
            objective.values[name].numpy(), start - np.clip(step, -RADII[1], RADII[1]), rtol=1e-12
        )
    assert 0 < clipped < 2 * sum(value.size for value in before.values()), "some entries clipped, and some free"


def test_two_steps_of_adam_clipped():
    objective = Quadratic(dtype=torch.float64)
    before = numpy_of(objective.parameters)
    options = AdamTrustRegionOptions(epsilon_start=START, epsilon_end=END, rate=0.5, rate_factor=0.2)
    first_gradient, first, second_gradient, second = two_steps(AdamTrustRegion(objective, options), objective)
    # At the first step, Adam moves by its rate: 0.5·0.2, and by 0.05·0.2 for opacities, both within √0.08.
    np.testing.assert_allclose(
        first["weights"], before["weights"] - 0.1 * np.sign(first_gradient["weights"]), rtol=1e-9
    )
    opacity = before["logit_opacities"] - 0.01 * np.sign(first_gradient["logit_opacities"])
    np.testing.assert_allclose(first["logit_opacities"], opacity, rtol=1e-9)
    m = 0.9 * 0.1 * first_gradient["weights"] + 0.1 * second_gradient["weights"]
    v = 0.999 * 0.001 * first_gradient["weights"] ** 2 + 0.001 * second_gradient["weights"] ** 2
    step = 0.1 * (m / 0.19) / np.sqrt(v / (1 - 0.999**2))
    assert (np.abs(step) > RADII[1]).any()
    np.testing.assert_allclose(second["weights"], first["weights"] - np.clip(step, -RADII[1], RADII[1]), rtol=1e-9)


def test_adam_in_an_endless_radius_is_adam():
    ours, theirs = Quadratic(dtype=torch.float64), Quadratic(dtype=torch.float64)
    clipped = AdamTrustRegion(ours, AdamTrustRegionOptions(epsilon_start=1e3, epsilon_end=1e3))
    free = Adam(theirs, AdamOptions())
    for step in range(30):
        clipped.step(None, Progress(step, 30))
        free.step(None, Progress(step, 30))
    for name, value in ours.values.items():
        torch.testing.assert_close(value, theirs.values[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_steps_keep_to_the_radii_of_a_cloud(name):
    objective = Cloudlike()
    entry = find_optimizer(name)
    options = entry.options()
    optimizer = entry.optimizer(objective, options, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in objective.values.items()}
    radii = HellingerRadii(options, objective.length_scale).radii(before, options.epsilon_start)
    optimizer.step(None, Progress(0, 10))
    lengths, length = (quats.norm(dim=1, keepdim=True) for quats in (before["quats"], objective.values["quats"]))
    torch.testing.assert_close(length, lengths)
    for key, value in objective.values.items():
        if key == "quats":  # Scaled back to their lengths after the clipped step; the scale is within 1 ± 2η/‖q‖.
            assert ((value - before[key]).abs() <= radii[key].amax(dim=1, keepdim=True) * 3).all()
            continue
        moved = (value - before[key]).abs()
        assert (moved > 0).all(), key
        # Parameters of size 4 round to 2.4e-7.
        assert (moved <= radii[key] * (1 + 1e-5) + 5e-7).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_gradient_and_curvature_stay(name):
    """Unseen Gaussians: 0/0 must be 0, over several measurements and the steps between them."""
    objective = Cloudlike(unseen=(1, 4))
    entry = find_optimizer(name)
    optimizer = entry.optimizer(objective, entry.options(), torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in objective.values.items()}
    for step in range(25):
        optimizer.step(None, Progress(step, 25))
    for key, value in objective.values.items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(value[[1, 4]], before[key][[1, 4]]), key
        assert not torch.equal(value[0], before[key][0]), key
    for key, value in optimizer.state().tensors.items():
        assert torch.isfinite(value).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_quaternion_of_a_sphere_keeps_its_length(name):
    """A sphere's radius for turns is the cap, a share of the length: unchecked, noise makes lengths exponential."""

    class Noise(Cloudlike):
        def gradient(self, batch: object) -> Evaluation:
            evaluation = super().gradient(batch)
            evaluation.gradient["quats"].copy_(1e-12 * self.values["quats"])
            return evaluation

    objective = Noise()
    objective.values["log_scales"][:] = -3.0
    objective.values["quats"][:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for kept in (objective.targets, objective.curvature):
        kept["log_scales"][:] = -3.0 if kept is objective.targets else 1.0
    entry = find_optimizer(name)
    optimizer = entry.optimizer(objective, entry.options(), torch.Generator().manual_seed(0))
    for step in range(500):
        optimizer.step(None, Progress(step, 500))
    torch.testing.assert_close(objective.values["quats"].norm(dim=1), torch.ones(6), rtol=1e-4, atol=0)


def test_the_damping_is_a_share_of_the_reduction_predicted_before():
    objective = Quadratic(rows=30, dtype=torch.float64)
    options = DiagonalGaussNewtonOptions(epsilon_start=START, epsilon_end=END, momentum=0.0, damping=0.5, refresh=1)
    run = DiagonalGaussNewton(objective, options)
    before, first = numpy_of(objective.parameters), numpy_of(objective.gradient(None).gradient)
    run.step(None, Progress(0, 4))
    for name, start in before.items():
        predicted = np.abs(first[name] * RADII[0]).mean()
        assert run.state().scalars[f"predicted.{name}"] == pytest.approx(predicted, rel=1e-12)
        step = first[name] / objective.curvature[name].numpy()
        moved = start - np.clip(step, -RADII[0], RADII[0])
        np.testing.assert_allclose(objective.values[name].numpy(), moved, rtol=1e-12)
    before, second = numpy_of(objective.parameters), numpy_of(objective.gradient(None).gradient)
    run.step(None, Progress(1, 4))
    for name, start in before.items():
        damping = 0.5 * np.abs(first[name] * RADII[0]).mean()
        x = second[name] * RADII[1] / (objective.curvature[name].numpy() * RADII[1] ** 2 + damping)
        moved = start - RADII[1] * np.clip(x, -1, 1)
        np.testing.assert_allclose(objective.values[name].numpy(), moved, rtol=1e-12)


def test_curvature_is_measured_at_every_refresh():
    class Counting(Quadratic):
        measured = 0

        def exact_gauss_newton_diagonal(self, batch: object) -> Tensors:
            self.measured += 1
            return super().exact_gauss_newton_diagonal(batch)

    objective = Counting()
    optimizer = DiagonalGaussNewton(objective, DiagonalGaussNewtonOptions(refresh=4))
    counts = []
    for step in range(9):
        optimizer.step(None, Progress(step, 9))
        counts.append(objective.measured)
    assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    torch.testing.assert_close(optimizer.state().tensors["age.rows"], torch.full((8,), 3.0))


def test_fresh_rows_start_unbiased():
    """Two rows of the same curvature, one new: once measured, both have the same corrected mean."""
    objective = Quadratic(rows=4)
    optimizer = DiagonalGaussNewton(objective, DiagonalGaussNewtonOptions(refresh=1, curvature_decay=0.9))
    for step in range(5):
        optimizer.step(None, Progress(step, 20))
    edit = SceneEdit(torch.tensor([0, 1, 1]), torch.tensor([False, False, True]))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    assert optimizer.state().tensors["age.rows"].tolist() == [5, 5, 0]
    for name in objective.parameters:
        kept = optimizer.state().tensors[f"curvature.{name}"]
        torch.testing.assert_close(kept[:2], objective.curvature[name][:2])
        assert (kept[2] == 0).all()
    optimizer.step(None, Progress(5, 20))
    state = optimizer.state().tensors
    assert state["age.rows"].tolist() == [6, 6, 1]
    for name, curvature in objective.curvature.items():
        torch.testing.assert_close(state[f"curvature.{name}"], curvature)


def test_the_state_is_at_most_twice_adams():
    objective = Cloudlike(rows=50)
    adams = sum(value.numel() for value in Adam(objective, AdamOptions()).state().tensors.values())
    for name in NAMES:
        entry = find_optimizer(name)
        optimizer = entry.optimizer(objective, entry.options(), torch.Generator())
        assert sum(value.numel() for value in optimizer.state().tensors.values()) <= 1.05 * adams


def test_distances_decay_exponentially():
    options = SignTrustRegionOptions(epsilon_start=1e-4, epsilon_end=1e-8)
    assert [options.distance(Progress(step, 100)) for step in (0, 25, 50, 100, 200)] == pytest.approx(
        [1e-4, 1e-5, 1e-6, 1e-8, 1e-8]
    )


def test_defaults_are_those_documented():
    published, ours = PublishedGaussNewtonOptions(), DiagonalGaussNewtonOptions()
    assert (published.epsilon_start, published.epsilon_end, published.estimator) == (1e-6, 1e-8, "parameter")
    assert (published.momentum, published.curvature_decay, published.refresh, published.probes) == (0.9, 0.999, 10, 1)
    assert published.curvature_factor == 1.0
    assert (published.max_logit, ours.max_logit) == (10.0, 0.5)
    assert (ours.epsilon_start, ours.epsilon_end, ours.estimator, ours.damping) == (3e-5, 1e-7, "exact", 1.0)
    assert published.damping == 0.0
    assert (AdamTrustRegionOptions().epsilon_start, AdamTrustRegionOptions().epsilon_end) == (1e-6, 1e-8)
    assert (SignTrustRegionOptions().epsilon_start, SignTrustRegionOptions().epsilon_end) == (1e-5, 1e-7)


def test_the_estimator_is_the_one_named():
    options = DiagonalGaussNewtonOptions
    assert options(estimator="exact").make_estimator() == Exact()
    assert options(estimator="residual", probes=3).make_estimator() == ResidualProbes(3)
    assert options(estimator="parameter", probes=2).make_estimator() == ParameterProbes(2)


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_json(name):
    import json

    options = find_optimizer(name).options
    assert options(**json.loads(json.dumps(asdict(options())))) == options()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["epsilon_start", "epsilon_end"])
@pytest.mark.parametrize("value", [0.0, -1e-6, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(name, field, value):
    with pytest.raises(InputError, match=f"{field} must be a positive number"):
        find_optimizer(name).options(**{field: value})


@pytest.mark.parametrize("options", [DiagonalGaussNewtonOptions, PublishedGaussNewtonOptions])
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("probes", 0, "probes must be at least 1, got 0"),
        ("refresh", 0, "refresh must be at least 1"),
        ("momentum", 1.0, "momentum"),
        ("curvature_decay", -0.1, "curvature_decay"),
        ("curvature_factor", 0.0, "curvature_factor"),
    ],
)
def test_options_without_sense_are_refused(options, field, value, says):
    with pytest.raises(ValueError, match=says):
        options(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("beta1", 1.0), ("rate", -1.0), ("rate_factor", 0.0)])
def test_adams_options_are_checked_too(field, value):
    with pytest.raises(ValueError, match=field):
        AdamTrustRegionOptions(**{field: value})


@pytest.mark.parametrize(
    ("estimator", "asked"), [("exact", "gauss_newton_diagonal"), ("residual", "vjp"), ("parameter", "jvp, vjp")]
)
@pytest.mark.parametrize("optimizer", [DiagonalGaussNewton, PublishedGaussNewton])
def test_the_estimators_oracles_are_asked_for_at_once(optimizer, estimator, asked):
    class GradientsAlone(Quadratic):
        @property
        def oracles(self) -> frozenset[Oracle]:
            return frozenset({Oracle.GRADIENT})

    with pytest.raises(MissingOracleError, match=f"{optimizer.__name__}.* needs {asked}, which"):
        optimizer(GradientsAlone(), DiagonalGaussNewtonOptions(estimator=estimator))


def test_parameters_with_other_numbers_of_rows_share_one_age():
    class Layers(Quadratic):
        def __init__(self) -> None:
            super().__init__()
            for kept in (self.values, self.targets, self.curvature):
                kept["weights"] = kept["weights"][:2]

    objective = Layers()
    before = objective.loss()
    optimizer = DiagonalGaussNewton(objective, DiagonalGaussNewtonOptions())
    for step in range(20):
        optimizer.step(None, Progress(step, 20))
    assert objective.loss() < before
    assert optimizer.state().tensors["age.rows"].tolist() == [2.0]
