"""ESGD, ESGD-max and both AdaHessians: their diagonals against dense Hessians, their steps against the formula."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from fields.cases import tiny_image_task
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.spectrum import dense_hessian
from splatopt.optim.curvature_diagonal import ESGD, AdaHessianE, AdaHessianJ, ESGDMax
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS
from splatopt.optim.preconditioned import (
    bias_correction,
    decaying_maximum,
    diagonal_entries,
    kernel_average,
    moving_average,
    squared_row_norms,
)

EVERYTHING = torch.arange(36)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def leaves(task):
    return list(task.leaves.values())


def diagonal(optimizer):
    return torch.cat([optimizer.state[p]["diagonal"].reshape(-1) for p in optimizer.param_groups[0]["params"]])


class Fixed:
    """½ θᵀHθ of a fixed H, in two parameters."""

    def __init__(self, seed=0, dtype=torch.float64):
        root = torch.randn(7, 7, generator=generator(seed), dtype=dtype)
        self.hessian = root @ root.T / 7 - 0.6 * torch.eye(7, dtype=dtype)
        theta = torch.randn(7, generator=generator(seed + 1), dtype=dtype)
        self.params = [torch.nn.Parameter(theta[:4].reshape(2, 2).clone()), torch.nn.Parameter(theta[4:].clone())]

    def flat(self):
        return torch.cat([p.reshape(-1) for p in self.params])

    def loss(self):
        return 0.5 * self.flat() @ self.hessian @ self.flat()


# ---------------------------------------------------------------------- the rules


@pytest.mark.parametrize("name", ["gaussian", "sine"])
def test_probes_estimate_row_norms_and_diagonal_at_the_monte_carlo_rate(name):
    task = tiny_image_task(name, width=4)
    hessian = dense_hessian(task, EVERYTHING)
    source = generator(3)
    probes = torch.stack([rademacher(hessian[0], source) for _ in range(6400)])
    products = probes @ hessian
    rows, entries = hessian.square().sum(dim=1), hessian.diagonal()
    # Exact variances of one probe, with signs v: of (Hv)²ᵢ it is 2((Σ h²)² - Σ h⁴), of vᵢ(Hv)ᵢ it is Σ_{j≠i} h².
    spread_rows = (2 * (rows**2 - (hessian**4).sum(dim=1))).sqrt()
    spread_entries = (rows - entries**2).sqrt()
    for count in (100, 1600, 6400):
        some, of_them = list(probes[:count]), list(products[:count])
        z_rows = (squared_row_norms(of_them) - rows) / spread_rows * count**0.5
        z_entries = (diagonal_entries(some, of_them) - entries) / spread_entries * count**0.5
        for z in (z_rows, z_entries):
            assert z.abs().max() < 5
            assert 0.3 < z.square().mean() < 3, "the error is as large as theory says, no larger and no smaller"


def test_probes_are_signs_of_both_kinds():
    seen = rademacher(torch.empty(1000), generator())
    assert set(seen.tolist()) == {-1.0, 1.0}


def test_the_small_rules():
    mean = torch.tensor([1.0, 2.0])
    moving_average(mean, torch.tensor([3.0, 0.0]), 0.75)
    assert mean.tolist() == [1.5, 1.5]
    largest = torch.tensor([4.0, 1.0])
    decaying_maximum(largest, torch.tensor([1.0, 3.0]), 0.5)
    assert largest.tolist() == [2.0, 3.0]
    assert bias_correction(0.5, 3) == 1 - 0.125
    kernel = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert kernel_average(kernel).flatten().tolist() == [1.5] * 4 + [5.5] * 4
    assert torch.equal(kernel_average(torch.ones(2, 3)), torch.ones(2, 3))


# ---------------------------------------------------------------------- the optimizers


def test_esgds_diagonal_is_the_row_norms_of_a_dense_hessian():
    """With refreshes in every step and a rate that moves nothing, D̂ is the mean over all probes."""
    fixed = Fixed()
    settings = {"betas": (0.9, 0.99), "first_probes": 1, "generator": generator(1)}
    optimizer = ESGD(fixed.params, lr=1e-12, warmup=800, **settings)
    for _ in range(800):
        optimizer.step(fixed.loss)
    rows = fixed.hessian.square().sum(dim=1)
    found = diagonal(optimizer) / bias_correction(0.99, 800)
    # The average forgets: its weights are worth (1+β)/(1-β) = 199 probes.
    spread = (2 * (rows**2 - (fixed.hessian**4).sum(dim=1)) / 199).sqrt()
    assert ((found - rows).abs() < 4 * spread).all()


def test_adahessian_js_diagonal_is_that_of_a_dense_hessian_with_its_signs():
    fixed = Fixed()
    optimizer = AdaHessianJ(fixed.params, lr=1e-12, betas=(0.9, 0.99), first_probes=1, generator=generator(1))
    for _ in range(800):
        optimizer.step(fixed.loss)
    found = diagonal(optimizer) / bias_correction(0.99, 800)
    exact = fixed.hessian.diagonal()
    spread = ((fixed.hessian.square().sum(dim=1) - exact**2) / 199).sqrt()
    assert ((found - exact).abs() < 4 * spread).all()
    assert (found < 0).any(), "this Hessian has a negative entry"


def reference(kind, fixed, steps, *, lr, warmup, interval, first, seed):
    """The update written out with the dense Hessian, independent of autograd; returns θ."""
    source = generator(seed)
    theta = fixed.flat().detach().clone()
    mean, curve, refreshes, scale = torch.zeros_like(theta), torch.zeros_like(theta), 0, None
    for step in range(1, steps + 1):
        if step <= warmup or step % interval == 0:
            squares, products = [], []
            for _ in range(first if refreshes == 0 else 1):
                v = torch.cat([rademacher(p.detach(), source).reshape(-1) for p in fixed.params])
                squares.append((fixed.hessian @ v) ** 2)
                products.append(v * (fixed.hessian @ v))
            refreshes += 1
            square, product = torch.stack(squares).mean(0), torch.stack(products).mean(0)
            if kind == "max":
                curve = torch.maximum(0.999 * curve, square)
                scale = curve.sqrt()
            elif kind == "j":
                curve = 0.999 * curve + 0.001 * product
                scale = (curve / (1 - 0.999**refreshes)).abs()
            else:
                curve = 0.999 * curve + 0.001 * square
                scale = (curve / (1 - 0.999**refreshes)).sqrt()
        mean = 0.9 * mean + 0.1 * (fixed.hessian @ theta)
        rate = lr * (1 - 0.99**step) if kind == "max" else lr
        theta = theta - rate * (mean / (1 - 0.9**step)) / (scale + 1e-4)
    return theta


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("e", ESGD),
        ("max", ESGDMax),
        ("adae", lambda params, warmup, interval, **settings: AdaHessianE(params, **settings)),
        ("j", lambda params, warmup, interval, **settings: AdaHessianJ(params, **settings)),
    ],
)
def test_steps_are_the_formula_with_bias_corrected_by_the_number_of_refreshes(kind, make):
    every = kind in ("adae", "j")
    settings = {"warmup": 3, "interval": 1 if every else 5}
    expected = reference(kind, Fixed(), 12, lr=0.02, first=4, seed=5, **settings)
    fixed = Fixed()
    optimizer = make(fixed.params, lr=0.02, first_probes=4, generator=generator(5), warmup=3, interval=5)
    losses = [float(optimizer.step(fixed.loss)) for _ in range(12)]
    assert torch.allclose(fixed.flat(), expected, rtol=1e-9, atol=1e-12)
    assert losses[0] == pytest.approx(float(Fixed().loss().detach()))
    assert optimizer.param_groups[0]["refreshes"] == (12 if every else 5), "steps 1 to 3, 5 and 10"


def test_a_row_without_curvature_steps_no_further_than_the_floor_lets_it():
    """Of p, H = diag(2, 2, 0) at first, as a unit that is idle; then the third row gets a gradient."""
    steps = {}
    for floor in (0.0, 0.5):
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = ESGD([p], lr=0.1, warmup=1, floor=floor)
        optimizer.step(lambda p=p: p[:2].square().sum())
        before = p.detach().clone()
        optimizer.step(lambda p=p: p[:2].square().sum() + p[2])
        steps[floor] = (before - p.detach())[2].item()
    mean = 0.1 / (1 - 0.9**2)
    assert steps[0.0] == pytest.approx(0.1 * mean / 1e-4)
    assert steps[0.5] == pytest.approx(0.1 * mean / (0.5 * (8 / 3) ** 0.5 + 1e-4))


def test_parameters_that_are_frozen_or_not_used_stay_and_new_ones_move_at_once():
    used, unused, frozen, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(4))
    frozen.requires_grad_(False)
    optimizer = ESGD([used, unused, frozen], lr=0.1, warmup=1)
    for _ in range(3):
        optimizer.step(lambda: (used * frozen).square().sum())
    assert torch.equal(unused, torch.ones(2))
    assert torch.equal(frozen, torch.ones(2))
    assert (used < 1).all()
    optimizer.add_param_group({"params": [late]})
    optimizer.step(lambda: used.square().sum() + late.square().sum())
    assert (late < 1).all()


@pytest.mark.parametrize("kind", [ESGD, AdaHessianE, AdaHessianJ])
def test_a_parameter_that_is_unfrozen_late_begins_as_a_new_one(kind):
    """Of ½Σp², |D| is 1 and the mean is p, however many refreshes and steps there were before."""
    used, late = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    late.requires_grad_(False)
    optimizer = kind([used, late], lr=0.25, warmup=50, damping=1e-9)
    for _ in range(7):
        optimizer.step(lambda: 0.5 * used.square().sum())
    late.requires_grad_(True)
    optimizer.step(lambda: 0.5 * (used.square().sum() + late.square().sum()))
    assert torch.allclose(1 / optimizer.state[late]["inverse"], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(late, torch.full((2,), 0.75, dtype=torch.float64))
    # Frozen for a while, it goes on with the counts that it had.
    late.requires_grad_(False)
    for _ in range(9):
        optimizer.step(lambda: 0.5 * used.square().sum())
    late.requires_grad_(True)
    optimizer.step(lambda: 0.5 * (used.square().sum() + late.square().sum()))
    assert torch.allclose(1 / optimizer.state[late]["inverse"], torch.ones(2, dtype=torch.float64))
    mean = (0.9 * 0.1 * 1 + 0.1 * 0.75) / (1 - 0.9**2)
    assert torch.allclose(late, torch.full((2,), 0.75 - 0.25 * mean, dtype=torch.float64))


def test_a_new_parameter_has_as_many_probes_as_the_first_ones():
    fixed, late = Fixed(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = ESGD(fixed.params, warmup=1, first_probes=6)
    optimizer.step(fixed.loss)
    optimizer.add_param_group({"params": [late]})
    counts = []
    optimizer.refresh = lambda diagonal, probes, products, beta2: counts.append(len(probes))
    optimizer.step(lambda: fixed.loss() + late.square().sum())
    assert counts == [6, 6, 6]


@pytest.mark.parametrize("kind", [ESGD, ESGDMax, AdaHessianE, AdaHessianJ])
def test_groups_may_be_frozen_as_a_whole(kind):
    used, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    frozen.requires_grad_(False)
    optimizer = kind([{"params": [used]}, {"params": [frozen]}], lr=0.1)
    optimizer.step(lambda: (used * frozen).square().sum())
    assert (used < 1).all()
    assert torch.equal(frozen, torch.ones(2))
    used.requires_grad_(False)
    before = used.clone()
    assert float(optimizer.step(lambda: (used * frozen).square().sum())) == float((used * frozen).square().sum())
    assert torch.equal(used, before)


def test_a_closure_that_spends_its_graph_is_told():
    p = torch.nn.Parameter(torch.ones(2))

    def closure():
        loss = p.square().sum()
        torch.autograd.grad(loss, p)
        return loss

    with pytest.raises(RuntimeError, match="the closure must return the loss with its graph, unspent"):
        ESGD([p]).step(closure)


def test_classes_have_the_rates_of_the_table():
    kinds = {"esgd": ESGD, "esgd-max": ESGDMax, "adahessian-e": AdaHessianE, "adahessian-j": AdaHessianJ}
    for name, kind in kinds.items():
        assert kind([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == FIELD_OPTIMIZERS[name].rate


def test_the_gradient_is_left_where_torch_puts_it():
    fixed = Fixed()
    expected = fixed.hessian @ fixed.flat().detach()
    ESGD(fixed.params, lr=0.1).step(fixed.loss)
    assert torch.allclose(torch.cat([p.grad.reshape(-1) for p in fixed.params]), expected)


def test_state_goes_through_torchs_own_dictionaries():
    straight, other = Fixed(), Fixed()
    source = generator(5)
    optimizer = ESGD(straight.params, warmup=3, interval=4, generator=source)
    for _ in range(6):
        optimizer.step(straight.loss)
    saved, drawn = deepcopy(optimizer.state_dict()), source.get_state()
    second = ESGD(other.params, lr=99.0, warmup=3, interval=4, generator=generator())
    with torch.no_grad():
        for mine, theirs in zip(other.params, straight.params, strict=True):
            mine.copy_(theirs)
    second.load_state_dict(saved)
    second.generator.set_state(drawn)
    for _ in range(6):
        optimizer.step(straight.loss)
        second.step(other.loss)
    assert torch.equal(straight.flat(), other.flat())


@pytest.mark.parametrize("optimizer", [ESGD, ESGDMax, AdaHessianE, AdaHessianJ])
def test_in_an_ordinary_loop_the_loss_falls(optimizer):
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator())
    x = torch.rand(64, 2, generator=generator(1))
    y = (x[:, :1] * x[:, 1:]).sin()
    one = optimizer(net.parameters(), lr=0.003 if optimizer is AdaHessianJ else 0.1)
    losses = [float(one.step(lambda: (net(x) - y).square().mean())) for _ in range(150)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_parameter_the_loss_is_linear_in_has_no_curvature_and_is_moved_by_damping():
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    ESGD([p, q], lr=0.5, damping=10.0).step(lambda: p.square().sum() + q.sum())
    assert torch.allclose(q, torch.full((3,), 1 - 0.5 / 10))
    assert torch.allclose(p, torch.full((2,), 1 - 0.5 * 2 / (2 + 10)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.0}, "lr"),
        ({"damping": 0.0}, "damping"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]"),
        ({"warmup": 0}, "warmup"),
        ({"interval": 0}, "interval"),
        ({"first_probes": 0}, "first_probes"),
        ({"floor": -0.1}, "floor"),
        ({"floor": 1.0}, "floor"),
    ],
)
def test_nonsense_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ESGD([torch.nn.Parameter(torch.ones(1))], **settings)


def test_esgd_max_refuses_a_decay_that_never_warms_up():
    with pytest.raises(ValueError, match="rate_decay"):
        ESGDMax([torch.nn.Parameter(torch.ones(1))], rate_decay=1.0)
