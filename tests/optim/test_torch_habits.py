"""What people do with ``torch.optim`` out of habit, done with ESGD and its like."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.optim import ESGD, KFAC, AdaHessianE, AdaHessianJ, ESGDMax, Shampoo
from splatopt.torch_api import SceneOptimizer
from torch_api.toy_scene import parameters, render

HESSIAN = [ESGD, ESGDMax, AdaHessianE, AdaHessianJ]


class Task:
    """A small network and its data, the same each time."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.x = torch.rand(32, 2)
        self.y = (self.x[:, :1] * self.x[:, 1:]).sin()

    def loss(self) -> torch.Tensor:
        return (self.net(self.x) - self.y).square().mean()

    def flat(self) -> torch.Tensor:
        return torch.cat([value.detach().flatten() for value in self.net.parameters()])


def habitual(task: Task, optimizer: torch.optim.Optimizer, change=lambda: None):
    """The closure that torch's documentation shows."""

    def closure():
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        change()
        return loss

    return closure


@pytest.mark.parametrize("kind", HESSIAN)
def test_a_closure_may_call_backward_or_leave_it(kind):
    plain, usual = Task(), Task()
    one, other = (kind(task.net.parameters(), warmup=3) for task in (plain, usual))
    for _ in range(8):
        first, second = one.step(plain.loss), other.step(habitual(usual, other))
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(plain.flat(), usual.flat())


def test_gradients_that_a_closure_has_clipped_are_what_the_step_takes():
    task = Task()
    optimizer = ESGD(task.net.parameters(), warmup=2, betas=(0.0, 0.999))
    clip = [0.0]
    for step in range(5):
        clip[0] = 0.01 if step % 2 else 0.02
        optimizer.step(
            habitual(task, optimizer, lambda: torch.nn.utils.clip_grad_norm_(task.net.parameters(), clip[0]))
        )
        norm = torch.cat([value.grad.flatten() for value in task.net.parameters()]).norm()
        assert float(norm) == pytest.approx(clip[0], rel=1e-3)
        means = torch.cat([optimizer.state[value]["mean"].flatten() for value in task.net.parameters()])
        assert float(means.norm()) == pytest.approx(clip[0], rel=1e-3)


def test_every_second_derivative_is_taken_although_backward_was_called():
    plain, usual = Task(), Task()
    one, other = (ESGD(task.net.parameters(), warmup=1, interval=3) for task in (plain, usual))
    for _ in range(7):
        one.step(plain.loss)
        other.step(habitual(usual, other))
    assert one.param_groups[0]["refreshes"] == other.param_groups[0]["refreshes"] == 3
    for mine, theirs in zip(plain.net.parameters(), usual.net.parameters(), strict=True):
        torch.testing.assert_close(one.state[mine]["diagonal"], other.state[theirs]["diagonal"])


@pytest.mark.parametrize("zeroed", [True, False])
def test_a_closure_that_calls_backward_no_more_is_noticed(zeroed):
    plain, changing = Task(), Task()
    one, other = (ESGD(task.net.parameters(), warmup=2) for task in (plain, changing))

    def without_backward():
        if zeroed:
            other.zero_grad()
        return changing.loss()

    for closure in [habitual(changing, other)] * 4 + [without_backward] * 3:
        one.step(plain.loss)
        other.step(closure)
    torch.testing.assert_close(plain.flat(), changing.flat())


def test_a_step_whose_loss_has_no_part_of_the_parameters_is_none_of_theirs():
    task, other = Task(), torch.nn.Parameter(torch.ones(()))
    optimizer = ESGD(task.net.parameters(), warmup=2)

    def elsewhere():
        optimizer.zero_grad()
        loss = (other * other).sum()
        loss.backward()
        return loss

    for closure in [habitual(task, optimizer)] * 4 + [elsewhere] * 2 + [habitual(task, optimizer)] * 2:
        optimizer.step(closure)
    assert bool(task.flat().isfinite().all())


def test_a_resumed_run_goes_on_whatever_its_closure_does():
    whole, resumed = Task(), Task()
    one = ESGD(whole.net.parameters(), warmup=2)
    for _ in range(4):
        one.step(habitual(whole, one))
    other = ESGD(resumed.net.parameters(), warmup=2)
    other.load_state_dict(deepcopy(one.state_dict()))
    resumed.net.load_state_dict(whole.net.state_dict())
    for _ in range(3):
        one.step(habitual(whole, one))
        other.step(habitual(resumed, other))
    assert torch.equal(whole.flat(), resumed.flat())


@pytest.mark.parametrize("kind", HESSIAN)
def test_a_step_without_a_closure_says_that_it_needs_one(kind):
    task = Task()
    optimizer = kind(task.net.parameters())
    task.loss().backward()
    with pytest.raises(InputError, match=f"{kind.__name__} differentiates the loss twice.*call step\\(closure\\)"):
        optimizer.step()
    with pytest.raises(InputError, match="as a tensor, got a float"):
        optimizer.step(lambda: task.loss().item())


def test_kfac_says_that_it_needs_residuals():
    with pytest.raises(InputError, match="call step\\(closure\\)"):
        KFAC(Task().net).step()


def test_shampoo_steps_after_backward_or_with_a_closure():
    after, closed = Task(), Task()
    one, other = (Shampoo(task.net.parameters(), 1e-2) for task in (after, closed))
    for _ in range(3):
        one.zero_grad()
        after.loss().backward()
        one.step()
        other.step(habitual(closed, other))
    assert torch.equal(after.flat(), closed.flat())


@pytest.mark.parametrize("kind", [*HESSIAN, Shampoo])
def test_groups_have_rates_of_their_own_that_schedulers_change(kind):
    task = Task()
    first, second = task.net[0], task.net[2]
    groups = [{"params": list(first.parameters()), "lr": 1e-2}, {"params": list(second.parameters()), "lr": 0.5}]
    optimizer = kind(groups, 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    held, moved = first.weight.detach().clone(), second.weight.detach().clone()
    optimizer.step(habitual(task, optimizer))
    assert not torch.equal(second.weight, moved)
    assert not torch.equal(first.weight, held)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    before = task.flat()
    optimizer.step(habitual(task, optimizer))
    assert torch.equal(task.flat(), before), "a rate of zero moves nothing"


def test_the_rate_of_a_group_scales_its_step():
    steps = []
    for rate in (0.1, 0.2):
        task = Task()
        optimizer = ESGD([{"params": task.net.parameters(), "lr": rate}])
        before = task.flat()
        optimizer.step(task.loss)
        steps.append(task.flat() - before)
    torch.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*HESSIAN, Shampoo])
def test_a_grad_scaler_is_refused_in_a_sentence(kind):
    task = Task()
    optimizer, scaler = kind(task.net.parameters(), 0.1), torch.amp.GradScaler("cpu")
    scaler.scale(task.loss()).backward()
    with pytest.raises(InputError, match=f"{kind.__name__} does not work with GradScaler"):
        scaler.step(optimizer)


def test_a_grad_scaler_is_refused_for_scenes_too():
    params = parameters()
    optimizer, scaler = SceneOptimizer("adam", params), torch.amp.GradScaler("cpu")
    scaler.scale(render(params)[0].square().mean()).backward()
    with pytest.raises(InputError, match="SceneOptimizer does not work with GradScaler"):
        scaler.step(optimizer)
    with pytest.raises(InputError, match="RowProxy does not work with GradScaler"):
        scaler.step(optimizer.optimizers["means"])
