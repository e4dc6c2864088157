"""Gaussians that have been seen so often that the network has no share in their steps any more."""

from __future__ import annotations

import pytest
import torch

from meta.clouds import RATES, SMALL, begin, random_sequence, stirred
from meta.test_fused import ISAS, SCALE, assert_same_step, evaluations, in_torch, natively, start
from optim.quadratic import Quadratic
from splatopt.core import native
from splatopt.core.optimizer import Progress
from splatopt.core.scene_edit import SceneEdit
from splatopt.meta import learned as learned_module
from splatopt.meta.features import build_inputs
from splatopt.meta.fused import FusedNetwork
from splatopt.meta.inner import GROUPS, InnerRates
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.neighbours import nearest_others
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.step import learned_step
from splatopt.meta.weights import save_weights

OLD = 100 * RATES.handover
HURRIED = InnerRates(handover=0.05, average_power=0.0)
"""Rates whose Gaussians have grown after some six steps."""


def test_the_share_halves_at_the_handover_and_ends_at_a_hundred_times_that() -> None:
    ages = torch.tensor([0.0, 1.0, 1 + RATES.handover, OLD - RATES.handover, OLD + 2, 1e6])
    share = RATES.learned_share(ages)
    assert share[:3].tolist() == [1.0, 1.0, 0.5]
    assert 0.0100 <= float(share[3]) < 0.0102
    assert share[4:].tolist() == [0.0, 0.0]


@torch.no_grad()
def test_they_take_adams_step_and_have_nothing_to_say() -> None:
    network = stirred(LearnedNetwork(SMALL), size=0.1).double()
    sequence = random_sequence(60, 1)
    gradient, seen = sequence.gradients[0], torch.arange(60) % 5 > 0
    grown = torch.arange(60) % 3 == 0
    near = nearest_others(sequence.parameters["means"], 3, threads=1)

    def step(latent_of_grown: float):
        state = begin(sequence.parameters, network)
        state.age[grown] = OLD + 2
        state.latent[grown] = latent_of_grown
        state.observe(gradient, 0.1, seen, RATES)
        inputs = build_inputs(sequence.parameters, gradient, state, RATES, SCALE, seen)
        return state, learned_step(network, inputs, state, RATES, SCALE, near)

    state, one = step(0.2)
    _, other = step(-0.9)
    for name in GROUPS:
        assert torch.equal(one.changes[name][grown], one.adam[name][grown]), name
        assert one.changes[name][grown & seen].count_nonzero() > 0
        assert not torch.equal(one.changes[name][~grown & seen], one.adam[name][~grown & seen])
        assert torch.equal(one.changes[name], other.changes[name]), "what the grown ones remember is not heard"
    assert torch.equal(one.latent[grown], state.latent[grown])
    assert not torch.equal(one.latent[~grown & seen], state.latent[~grown & seen])


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "rest"), [(301, 15), (70, 0), (33, 3)])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_native_passes_step_them_as_in_torch(monkeypatch, isa, rows, rest, share) -> None:
    workers = native.workers(2, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    network, exact = stirred(LearnedNetwork(SMALL), size=0.1), stirred(LearnedNetwork(SMALL), size=0.1).double()
    passes, sequence = FusedNetwork(network), random_sequence(rows, 3, unseen=0.3, rest=rest)
    made = start(sequence, network)
    generator = torch.Generator().manual_seed(rows)
    made.state.age[torch.rand(rows, generator=generator) < share] = OLD
    made.state.latent.uniform_(-0.5, 0.5, generator=generator)
    expected = made.to(torch.float64)
    for gradient, loss, seen in evaluations(sequence):
        before = made.to(torch.float64)
        in_torch(exact, expected, gradient, loss, seen)
        natively(passes, made, gradient, loss, seen)
        assert_same_step(made, expected, before)


def hurried(tmp_path, dtype: torch.dtype) -> Learned:
    path = tmp_path / "hurried.safetensors"
    save_weights(path, stirred(LearnedNetwork(SMALL), size=0.1), HURRIED, {})
    objective = Quadratic(rows=40, spread=3.0, gaussians=True, dtype=dtype)
    return Learned(objective, LearnedOptions(str(path), neighbour_refresh=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_once_all_have_grown_no_neighbours_are_searched_for_until_others_come(tmp_path, monkeypatch, dtype) -> None:
    searches = []
    search = learned_module.nearest_others
    monkeypatch.setattr(learned_module, "nearest_others", lambda *args: searches.append(1) or search(*args))
    optimizer = hurried(tmp_path, dtype)

    def take(steps: int) -> int:
        searches.clear()
        for step in range(steps):
            optimizer.step(None, Progress(step, 100))
        return len(searches)

    assert take(8) == 2
    assert take(30) == 0
    state = optimizer.state()
    again = hurried(tmp_path, dtype)
    for name, value in optimizer.objective.parameters.items():
        again.objective.parameters[name].copy_(value)
    again.load_state(state)
    for one in (optimizer, again):
        for step in range(4):
            one.step(None, Progress(step, 100))
    for name, value in optimizer.objective.parameters.items():
        assert torch.equal(value, again.objective.parameters[name]), "going on is going on"
    edit = SceneEdit(source=torch.arange(40), fresh=torch.arange(40) >= 38)
    optimizer.objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    assert take(1) == 1


def test_a_settled_run_steps_alike_in_torch_and_natively(tmp_path, monkeypatch) -> None:
    def run() -> dict[str, torch.Tensor]:
        optimizer = hurried(tmp_path, torch.float32)
        for step in range(40):
            optimizer.step(None, Progress(step, 100))
        assert optimizer.state().scalars["steps"] == 40
        return {name: value.clone() for name, value in optimizer.objective.parameters.items()}

    natively_made = run()
    monkeypatch.setattr(learned_module, "fits", lambda *args: False)
    for name, value in run().items():
        torch.testing.assert_close(natively_made[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("age", [0.0, OLD])
def test_gradients_whose_squares_overflow_move_higher_bands_nowhere(monkeypatch, isa, age) -> None:
    workers = native.workers(1, isa)
    monkeypatch.setattr(native, "workers", lambda *_: workers)
    network = LearnedNetwork(SMALL)
    sequence = random_sequence(40, 1, rest=15)
    ((gradient, loss, seen),) = evaluations(sequence)
    gradient["sh_rest"][:7] *= 1e25
    made = start(sequence, network)
    made.state.age[:] = age
    expected, before = made.to(torch.float32), made.parameters["sh_rest"].clone()
    natively(FusedNetwork(network), made, gradient, loss, seen)
    in_torch(network, expected, gradient, loss, seen)
    assert (expected.state.exp_avg_sq["sh_rest"][:7] == torch.inf).all()
    assert torch.equal(made.parameters["sh_rest"][:7], before[:7])
    torch.testing.assert_close(made.parameters["sh_rest"], expected.parameters["sh_rest"])
