"""The learned step: Adam's where nothing was learned, and with the symmetries that its features claim."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from meta.clouds import RATES, SMALL, begin, random_sequence, stirred
from splatopt.core.schema import GAUSSIAN_TENSORS, rotation_matrices
from splatopt.meta.constants import ROW_FEATURES, SCENE_FEATURES
from splatopt.meta.features import build_inputs
from splatopt.meta.frames import quaternion_to_rotation_vector, rotation_vector_to_quaternion, to_own_axes, to_world
from splatopt.meta.neighbours import nearest_others
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.step import learned_step
from splatopt.optim.first_order import AdamOptions, SearchedAdamOptions
from splatopt.optim.parts import adam
from splatopt.optim.parts.adam import adam_update


def follow(network, sequence, length_scale=2.0, clock=None):
    """Return the parameters after each step of ``sequence``, and the state at the end."""
    parameters = {name: value.clone() for name, value in sequence.parameters.items()}
    state = begin(parameters, network)
    trail = []
    for gradient, loss, seen in zip(sequence.gradients, sequence.losses, sequence.seen, strict=True):
        state.observe(gradient, loss, seen, RATES)
        near = nearest_others(parameters["means"], network.options.neighbours)
        inputs = build_inputs(parameters, gradient, state, RATES, length_scale, seen)
        step = learned_step(network, inputs, state, RATES, length_scale, near, clock)
        state.latent = step.latent
        parameters = {name: value + step.changes[name] for name, value in parameters.items()}
        trail.append(parameters)
    return trail, state


def adam_rates(length_scale):
    options = SearchedAdamOptions()
    named = {"means": options.means_rate * length_scale, "log_scales": options.scales_rate, "quats": options.quats_rate}
    named |= {"logit_opacities": options.opacities_rate, "sh_dc": options.sh_dc_rate, "sh_rest": options.sh_rest_rate}
    return named


@pytest.mark.parametrize("size", sorted(SIZES))
def test_an_untrained_network_steps_as_adam_bit_for_bit(size, monkeypatch):
    monkeypatch.setattr(adam, "available", lambda: False)
    sequence = random_sequence(40, 25, dtype=torch.float32)
    with torch.no_grad():
        trail, _ = follow(LearnedNetwork(SIZES[size]), sequence)
    options, rates = AdamOptions(beta1=RATES.beta1, beta2=RATES.beta2, epsilon=RATES.epsilon), adam_rates(2.0)
    expected = {name: value.clone() for name, value in sequence.parameters.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    for number, gradient in enumerate(sequence.gradients, start=1):
        for name, value in expected.items():
            rate = rates[name] * (1 + (number - 1) / RATES.patience) ** -RATES.fall
            adam_update(value, gradient[name], *moments[name], rate=rate, step=number, options=options)
        for name, value in expected.items():
            assert torch.equal(trail[number - 1][name], value), (number, name)


def test_unseen_rows_stay_and_each_row_counts_its_own_steps():
    sequence = random_sequence(30, 12, unseen=0.4)
    with torch.no_grad():
        trail, state = follow(LearnedNetwork(SMALL).double(), sequence)
    rates, options = adam_rates(2.0), AdamOptions(beta1=RATES.beta1, beta2=RATES.beta2, epsilon=RATES.epsilon)
    seen = torch.stack(sequence.seen)
    assert torch.equal(state.age.long(), seen.sum(dim=0))
    before = sequence.parameters
    for after, mask in zip(trail, sequence.seen, strict=True):
        for name in GAUSSIAN_TENSORS:
            assert torch.equal(after[name][~mask], before[name][~mask])
            assert not torch.equal(after[name][mask], before[name][mask])
        before = after
    for row in range(30):
        own = [g for g, mask in zip(sequence.gradients, sequence.seen, strict=True) if mask[row]]
        for name in GAUSSIAN_TENSORS:
            value = sequence.parameters[name][row].clone()
            moments = (torch.zeros_like(value), torch.zeros_like(value))
            for number, gradient in enumerate(own, start=1):
                rate = rates[name] * (1 + (number - 1) / RATES.patience) ** -RATES.fall
                adam_update(value, gradient[name][row], *moments, rate=rate, step=number, options=options)
            torch.testing.assert_close(trail[-1][name][row], value, rtol=1e-12, atol=1e-12)


def test_unseen_rows_keep_their_latent_state_and_are_heard_by_nobody():
    network = stirred(LearnedNetwork(SMALL)).double()
    sequence = random_sequence(20, 3, unseen=0.3)
    with torch.no_grad():
        trail, state = follow(network, sequence)
        loud = {name: value.clone() for name, value in sequence.parameters.items()}
        hidden = ~torch.stack(sequence.seen).any(dim=0)
        if not hidden.any():
            hidden = ~sequence.seen[-1]
            sequence = replace(sequence, seen=[s & ~hidden for s in sequence.seen])
            trail, state = follow(network, sequence)
        loud["logit_opacities"][hidden] += 3
        loud["sh_dc"][hidden] -= 2
        other, _ = follow(network, replace(sequence, parameters=loud))
    assert hidden.any()
    assert torch.equal(state.latent[hidden], torch.zeros_like(state.latent[hidden]))
    for name in GAUSSIAN_TENSORS:
        assert torch.equal(trail[-1][name][~hidden], other[-1][name][~hidden]), name


@pytest.mark.parametrize("group", GAUSSIAN_TENSORS)
@torch.no_grad()
def test_an_unseen_row_without_numbers_is_heard_by_nobody(group):
    network = stirred(LearnedNetwork(SMALL)).double()
    sequence = random_sequence(20, 1)
    near, seen = nearest_others(sequence.parameters["means"], 3), torch.arange(20) != 7
    assert (near == 7).any(), "it is a neighbour"
    steps = []
    for value in (0.1, math.nan):
        parameters = {name: one.clone() for name, one in sequence.parameters.items()}
        parameters[group][7] = value
        state = begin(parameters, network)
        state.observe(sequence.gradients[0], 0.1, seen, RATES)
        state.exp_avg[group][7] = value
        inputs = build_inputs(parameters, sequence.gradients[0], state, RATES, 2.0, seen)
        steps.append(learned_step(network, inputs, state, RATES, 2.0, near))
    for name, change in steps[0].changes.items():
        assert torch.equal(steps[1].changes[name], change)
    assert torch.equal(steps[0].latent, steps[1].latent)


def test_permuting_gaussians_permutes_the_update():
    network = stirred(LearnedNetwork(SMALL)).double()
    sequence = random_sequence(25, 3, unseen=0.2)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    moved = replace(
        sequence,
        parameters={name: value[order] for name, value in sequence.parameters.items()},
        gradients=[{name: value[order] for name, value in gradient.items()} for gradient in sequence.gradients],
        seen=[mask[order] for mask in sequence.seen],
    )
    with torch.no_grad():
        trail, _ = follow(network, sequence)
        permuted, _ = follow(network, moved)
    for name in GAUSSIAN_TENSORS:
        torch.testing.assert_close(permuted[-1][name], trail[-1][name][order], rtol=1e-10, atol=1e-12)


def test_scaling_and_moving_the_world_scales_and_moves_the_update():
    network = stirred(LearnedNetwork(SMALL)).double()
    sequence = random_sequence(25, 3)
    factor, shift = 7.0, torch.tensor([3.0, -5.0, 2.0], dtype=torch.float64)
    scaled = replace(
        sequence,
        parameters=sequence.parameters
        | {
            "means": factor * sequence.parameters["means"] + shift,
            "log_scales": sequence.parameters["log_scales"] + math.log(factor),
        },
        gradients=[gradient | {"means": gradient["means"] / factor} for gradient in sequence.gradients],
    )
    with torch.no_grad():
        trail, _ = follow(network, sequence, length_scale=2.0)
        other, _ = follow(network, scaled, length_scale=2.0 * factor)
    torch.testing.assert_close(other[-1]["means"], factor * trail[-1]["means"] + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        other[-1]["log_scales"], trail[-1]["log_scales"] + math.log(factor), rtol=1e-9, atol=1e-9
    )
    for name in ("quats", "logit_opacities", "sh_dc", "sh_rest"):
        torch.testing.assert_close(other[-1][name], trail[-1][name], rtol=1e-9, atol=1e-9)


def test_a_half_turn_of_the_world_turns_the_update():
    network = stirred(LearnedNetwork(SMALL)).double()
    sequence = random_sequence(25, 3)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)  # about x

    def half_turned(values):
        w, x, y, z = values["quats"].unbind(dim=1)  # (0, 1, 0, 0) ∘ q
        # Basis functions of degree 1 are y, z and x, in this order.
        bands = values["sh_rest"] * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
        return values | {
            "means": values["means"] * signs,
            "quats": torch.stack([-x, w, -z, y], dim=1),
            "sh_rest": bands,
        }

    other = replace(
        sequence,
        parameters=half_turned(sequence.parameters),
        gradients=[half_turned(gradient) for gradient in sequence.gradients],
    )
    with torch.no_grad():
        trail, _ = follow(network, sequence)
        rotated, _ = follow(network, other)
    expected = half_turned(trail[-1])
    for name in GAUSSIAN_TENSORS:
        torch.testing.assert_close(rotated[-1][name], expected[name], rtol=1e-9, atol=1e-9)


def test_a_general_turn_leaves_what_depends_on_the_cloud_alone():
    """Adam's squares lie along the world's axes; parameters, seen along each Gaussian's own, do not."""
    generator = torch.Generator().manual_seed(2)
    quats = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator, dtype=torch.float64), dim=1)
    vectors = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    rotations = rotation_matrices(quats)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(9, 3, 3))
    torch.testing.assert_close(to_world(rotations, to_own_axes(rotations, vectors)), vectors)
    torch.testing.assert_close(
        quaternion_to_rotation_vector(quats, rotation_vector_to_quaternion(quats, vectors)), vectors
    )
    small = 1e-6
    moved = rotation_matrices(quats + small * rotation_vector_to_quaternion(quats, vectors))
    zero = torch.zeros(9, dtype=torch.float64)
    x, y, z = (2 * vectors).unbind(dim=1)
    spin = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(9, 3, 3)
    torch.testing.assert_close((moved - rotations) / small, rotations @ spin, rtol=1e-4, atol=1e-4)


def test_the_gradient_through_an_unroll_of_two_is_that_of_finite_differences():
    network = stirred(LearnedNetwork(SMALL), size=0.1).double()
    sequence = random_sequence(7, 2)
    generator = torch.Generator().manual_seed(4)
    weights = [
        {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for name, value in sequence.parameters.items()
        }
        for _ in range(2)
    ]

    def objective():
        trail, _ = follow(network, sequence)
        return sum(
            (after[name] * weight[name]).sum()
            for after, weight in zip(trail, weights, strict=True)
            for name in GAUSSIAN_TENSORS
        )

    objective().backward()
    checked = 0
    for parameter in network.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for place in range(0, len(flat), max(1, len(flat) // 3)):
            value, step = float(flat[place]), 1e-6
            with torch.no_grad():
                flat[place] = value + step
                above = float(objective())
                flat[place] = value - step
                below = float(objective())
                flat[place] = value
            assert float(gradient[place]) == pytest.approx((above - below) / (2 * step), rel=2e-5, abs=1e-6)
            checked += 1
    assert checked > 50
    assert float(network.latent.weight.grad.abs().max()) > 1e-6, "the latent state carries gradient to the second step"


def test_inputs_have_the_documented_numbers_and_no_unit():
    sequence = random_sequence(10, 1)
    state = begin(sequence.parameters, LearnedNetwork(SMALL))
    seen = torch.ones(10, dtype=torch.bool)
    state.observe(sequence.gradients[0], 0.1, seen, RATES)
    inputs = build_inputs(sequence.parameters, sequence.gradients[0], state, RATES, 1.0, seen)
    assert inputs.rows.shape == (10, ROW_FEATURES)
    assert inputs.scene.shape == (SCENE_FEATURES,)
    larger = begin(sequence.parameters, LearnedNetwork(SMALL))
    scaled = {name: 1e3 * value for name, value in sequence.gradients[0].items()}
    larger.observe(scaled, 0.1, seen, RATES)
    torch.testing.assert_close(build_inputs(sequence.parameters, scaled, larger, RATES, 1.0, seen).rows, inputs.rows)


def test_a_network_without_neighbours_or_state_scale_or_with_a_clock_steps():
    sequence = random_sequence(9, 2)
    plain = follow(stirred(LearnedNetwork(SMALL)).double(), sequence)[0][-1]
    clocked = stirred(LearnedNetwork(replace(SMALL, clock=True))).double()
    early = follow(clocked, sequence, clock=torch.tensor([0.0, 1.0]))[0][-1]
    late = follow(clocked, sequence, clock=torch.tensor([1.0, 0.0]))[0][-1]
    assert not torch.equal(early["means"], late["means"])
    for shape in (replace(SMALL, neighbours=0), replace(SMALL, state_scale=False)):
        other = follow(stirred(LearnedNetwork(shape)).double(), sequence)[0][-1]
        assert torch.isfinite(other["means"]).all()
        assert not torch.equal(other["means"], plain["means"])
