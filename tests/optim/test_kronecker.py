"""Shampoo's and K-FAC's factors against their definitions, their steps against dense algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from splatopt.core.checks import InputError
from splatopt.optim.kfac import KFAC, Factors, _Watch, damped_inverses, layer_factors
from splatopt.optim.shampoo import Shampoo, kronecker_sides, matrix_power


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- Shampoo


def test_the_sides_are_the_two_gram_matrices():
    gradient = normal(3, 5)
    left, right = kronecker_sides(gradient)
    assert torch.allclose(left, gradient @ gradient.T)
    assert torch.allclose(right, gradient.T @ gradient)
    (alone,) = kronecker_sides(gradient[:1])
    assert torch.allclose(alone, gradient[:1].T @ gradient[:1])


def test_their_kronecker_product_bounds_full_adagrad():
    """Gupta et al. 2018, lemma 8: g gᵀ ≤ r (GGᵀ)^½ ⊗ (GᵀG)^½ for G of rank r."""
    gradient = normal(3, 4)
    left, right = kronecker_sides(gradient)
    bound = 3 * torch.kron(matrix_power(left, 0.5, 0.0), matrix_power(right, 0.5, 0.0))
    outer = gradient.reshape(-1)[:, None] * gradient.reshape(-1)[None]
    assert torch.linalg.eigvalsh(bound - outer).min() > -1e-9


def test_matrix_powers():
    root = normal(4, 4)
    matrix = root @ root.T
    epsilon = 0.01
    damped = matrix + epsilon * matrix.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    quarter = matrix_power(matrix, -0.25, epsilon)
    assert torch.allclose(torch.linalg.matrix_power(quarter, 4) @ damped, torch.eye(4, dtype=torch.float64))
    assert torch.equal(matrix_power(torch.zeros(2, 2), -0.25, 0.1), torch.eye(2))


def test_two_steps_of_shampoo_are_the_formula():
    weight, bias = nn.Parameter(normal(3, 2)), nn.Parameter(normal(3, seed=1))
    optimizer = Shampoo([weight, bias], lr=0.1, betas=(0.5, 0.75), epsilon=0.01, interval=1)
    expected = [weight.detach().clone(), bias.detach().clone()]
    means, lefts, rights = [0, 0], [0, 0], [0, 0]
    for step in (1, 2):
        gradients = [normal(3, 2, seed=10 + step), normal(3, seed=20 + step)]
        for index, gradient in enumerate(gradients):
            g = gradient if index == 0 else gradient[None]
            means[index] = 0.5 * means[index] + 0.5 * g
            lefts[index] = 0.75 * lefts[index] + 0.25 * g @ g.T
            rights[index] = 0.75 * rights[index] + 0.25 * g.T @ g
            m, corrected = means[index] / (1 - 0.5**step), 1 - 0.75**step
            if index == 0:
                left = matrix_power(lefts[0] / corrected, -0.25, 0.01)
                p = left @ m @ matrix_power(rights[0] / corrected, -0.25, 0.01)
            else:
                p = m @ matrix_power(rights[1] / corrected, -0.5, 0.01)
            expected[index] = expected[index] - (0.1 * m.norm() / p.norm() * p).reshape(gradient.shape)
        weight.grad, bias.grad = gradients
        optimizer.step()
    assert torch.allclose(weight, expected[0])
    assert torch.allclose(bias, expected[1])


def test_a_step_of_shampoo_is_as_long_as_that_of_sgd_with_momentum():
    weight = nn.Parameter(normal(4, 4))
    before = weight.detach().clone()
    weight.grad = normal(4, 4, seed=3)
    Shampoo([weight], lr=0.3).step()
    assert float((weight - before).detach().norm()) == pytest.approx(0.3 * float(weight.grad.norm()))


def test_shampoo_refreshes_its_roots_every_interval_steps():
    weight = nn.Parameter(normal(3, 3))
    optimizer = Shampoo([weight], interval=3)
    roots = []
    for step in range(7):
        weight.grad = normal(3, 3, seed=step)
        optimizer.step()
        roots.append(optimizer.state[weight]["roots"][0].clone())
    changes = [index for index in range(1, 7) if not torch.equal(roots[index], roots[index - 1])]
    assert changes == [3, 6]


def test_shampoo_flattens_higher_dimensions_and_passes_what_has_no_gradient():
    kernel, idle = nn.Parameter(normal(2, 3, 2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Shampoo([kernel, idle])
    kernel.grad = normal(2, 3, 2, 2, seed=1)
    loss = optimizer.step(lambda: 4.0)
    assert loss == 4.0
    assert [len(side) for side in optimizer.state[kernel]["factors"]] == [2, 12]
    assert torch.equal(idle, torch.ones(2))


def test_shampoo_starts_each_parameter_anew_whenever_its_first_gradient_comes():
    early, late = nn.Parameter(normal(3, 3)), nn.Parameter(normal(3, 3, seed=2))
    alone = nn.Parameter(late.detach().clone())
    both, one = Shampoo([early, late], interval=4), Shampoo([alone], interval=4)
    for step in range(5):
        early.grad = normal(3, 3, seed=step)
        if step >= 2:
            late.grad = 1e4 * normal(3, 3, seed=10 + step)
            alone.grad = late.grad.clone()
            one.step()
        both.step()
    assert torch.isfinite(late).all()
    assert torch.equal(late, alone)


def test_shampoo_steps_as_long_as_sgd_where_squares_of_gradients_overflow():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Shampoo([weight], lr=1e-20, betas=(0.0, 0.9), interval=1)
    weight.grad = torch.full((2, 2), 1e20)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2, 2), -1.0))
    weight.grad = normal(2, 2).float()
    optimizer.step()
    for kept in (*optimizer.state[weight]["factors"], *optimizer.state[weight]["roots"]):
        assert torch.isfinite(kept).all()


def test_shampoo_keeps_a_root_where_a_new_one_cannot_be_taken(monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("did not converge")

    weight = nn.Parameter(normal(2, 2))
    optimizer = Shampoo([weight], interval=1)
    weight.grad = normal(2, 2, seed=1)
    optimizer.step()
    before = optimizer.state[weight]["roots"][0].clone()
    monkeypatch.setattr("splatopt.optim.shampoo.matrix_power", fail)
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["roots"][0], before)
    weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert torch.isnan(weight).any(), "what broke down is seen by whoever looks"


# ---------------------------------------------------------------------- K-FAC


def net(outputs=1):
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = 0.7 * normal(*parameter.shape, seed=seed)
    return module


POINTS = normal(6, 2, seed=40)


def residual(module, targets=0.3):
    out = module(POINTS)
    return (out - targets) * (2 / out.numel()) ** 0.5


def factors_of(module, seed=0):
    with _Watch([part for part in module if isinstance(part, nn.Linear)]) as seen:
        r = residual(module)
    return layer_factors(r, seen, generator(seed)), seen


def slopes(module, seen):
    """∂r/∂s of each layer and row, (rows, residuals of that row, out)."""
    r = residual(module)
    with _Watch([part for part in module if isinstance(part, nn.Linear)]) as again:
        r = residual(module)
    found = []
    for _, s in again:
        rows = [
            torch.stack([torch.autograd.grad(r[n, k], s, retain_graph=True)[0][n] for k in range(r.shape[1])])
            for n in range(len(r))
        ]
        found.append(torch.stack(rows))
    return found


def test_the_factors_of_one_output_are_their_definition_whatever_the_signs():
    module = net()
    factors, seen = factors_of(module)
    for one, (inputs, _), slope in zip(factors, seen, slopes(module, seen), strict=True):
        extended = torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1)
        assert torch.allclose(one.inputs, (extended[:, :, None] * extended[:, None]).mean(dim=0))
        assert torch.allclose(one.outputs, torch.einsum("nki,nkj->ij", slope, slope))


def test_the_output_factor_of_several_outputs_is_right_in_the_mean_over_signs():
    module = net(outputs=3)
    many = [factors_of(module, seed)[0] for seed in range(800)]
    exact = [torch.einsum("nki,nkj->ij", slope, slope) for slope in slopes(module, None)]
    for layer, truth in enumerate(exact):
        samples = torch.stack([one[layer].outputs for one in many])
        error = (samples.mean(dim=0) - truth).abs()
        assert (error < 5 * samples.std(dim=0) / 800**0.5 + 1e-12).all()


def test_the_product_is_the_gauss_newton_block_of_a_lone_linear_layer():
    module = nn.Sequential(nn.Linear(2, 1)).double()

    def flat_residual(weight, bias):
        out = functional_call(module, {"0.weight": weight, "0.bias": bias}, (POINTS,))
        return (out * (2 / out.numel()) ** 0.5).reshape(-1)

    jw, jb = jacrev(flat_residual, argnums=(0, 1))(module[0].weight.detach(), module[0].bias.detach())
    jacobian = torch.cat([jw.reshape(6, 2), jb.reshape(6, 1)], dim=1)
    (one,), _ = factors_of(module)
    assert torch.allclose(torch.kron(one.outputs, one.inputs), jacobian.T @ jacobian)


def test_damped_inverses_are_those_of_the_balanced_factors():
    a, g = normal(3, 3), normal(2, 2, seed=1)
    factors = Factors(a @ a.T, 0.01 * g @ g.T)
    inputs, outputs = damped_inverses(factors, 0.04)
    balance = (factors.inputs.diagonal().mean() / factors.outputs.diagonal().mean()).sqrt()
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(inputs @ (factors.inputs + balance * 0.2 * eye), eye)
    assert torch.allclose(outputs @ (factors.outputs + 0.2 / balance * eye[:2, :2]), eye[:2, :2])
    assert damped_inverses(Factors(-torch.eye(2), torch.eye(2)), 0.25) is None
    tiny = damped_inverses(Factors(1e-300 * torch.eye(2).double(), 1e300 * torch.eye(2).double()), 1e-12)
    assert torch.isfinite(tiny[1]).all()
    idle = Factors(torch.eye(2), torch.zeros(2, 2))
    assert torch.allclose(damped_inverses(idle, 0.25)[1], 2 * torch.eye(2))


def test_one_step_of_kfac_is_the_formula():
    module, twin = net(), net()
    factors, _ = factors_of(module)
    loss = 0.5 * residual(twin).square().sum()
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    optimizer = KFAC(module, lr=0.2, damping=0.03, clip=1e9, generator=generator())
    assert float(optimizer.step(lambda: residual(module))) == pytest.approx(float(loss.detach()))
    for index, layer in enumerate((0, 2)):
        inputs, outputs = damped_inverses(factors[index], 0.03)
        mean = torch.cat([gradients[2 * index], gradients[2 * index + 1][:, None]], dim=1)
        step = outputs @ mean @ inputs
        assert torch.allclose(module[layer].weight, twin[layer].weight - 0.2 * step[:, :-1])
        assert torch.allclose(module[layer].bias, twin[layer].bias - 0.2 * step[:, -1])


def test_kfacs_steps_are_no_longer_than_the_clip():
    module, twin, start = net(), net(), net()
    KFAC(module, lr=0.2, clip=1e9, generator=generator()).step(lambda: residual(module))
    KFAC(twin, lr=0.2, clip=1e-6, generator=generator()).step(lambda: residual(twin))
    pairs = [
        (short - begin, long - begin)
        for short, long, begin in zip(twin.parameters(), module.parameters(), start.parameters(), strict=True)
    ]
    shares = torch.cat([(short / long).reshape(-1) for short, long in pairs]).detach()
    assert shares.std() < 1e-9, "the whole step is shortened by one factor"
    assert 0 < shares.mean() < 0.5


def test_kfac_solves_a_linear_problem_in_one_step():
    """One linear layer with squared errors: the factors are exact, so an undamped step is Newton's."""
    module = nn.Sequential(nn.Linear(2, 1)).double()
    targets = POINTS @ normal(2, 1, seed=7) + 0.5
    optimizer = KFAC(module, lr=1.0, damping=1e-12, clip=1e9)
    optimizer.step(lambda: residual(module, targets))
    assert float(residual(module, targets).detach().norm()) < 1e-4


def test_kfac_lowers_a_net_and_refreshes_every_interval_steps():
    module = net()
    targets = torch.sin(3 * POINTS[:, :1])
    optimizer = KFAC(module, lr=0.1, damping=1e-2, interval=4)
    losses = [float(optimizer.step(lambda: residual(module, targets))) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.param_groups[0]["refreshes"] == 15


def test_kfac_keeps_its_inverses_where_new_factors_are_not_finite():
    module = net()
    optimizer = KFAC(module, lr=0.1, damping=0.25, interval=1, clip=1e9, generator=generator())
    with torch.no_grad():
        module[2].weight.zero_()
        module[2].bias.zero_()
    # r is zero, so is the gradient; its slope is 1e200, whose square is infinite.
    optimizer.step(lambda: 1e200 * module(POINTS))
    assert optimizer.param_groups[0]["refreshes"] == 0
    assert torch.equal(optimizer.state[module[2].weight]["outputs_inverse"], 2 * torch.eye(1).double())
    assert torch.equal(module[2].bias, torch.zeros(1).double())
    optimizer.step(lambda: residual(module) * torch.nan)
    assert module[2].bias.isnan().all(), "what broke down is seen by whoever looks"


def test_kfac_leaves_frozen_layers_as_they_are():
    module, lone = net(), net()
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    start = module[0].weight.clone()
    optimizer = KFAC(module, lr=0.1, damping=1e-2)
    losses = [float(optimizer.step(lambda: residual(module))) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.equal(module[0].weight, start)
    lone[2].bias.requires_grad_(False)
    with pytest.raises(InputError, match=r"the bias of its layer 1 of \(1, 4\) is frozen; freeze all of a layer"):
        KFAC(lone)
    module[2].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"the weight of its layer 0"):
        optimizer.step(lambda: residual(module))


def test_kfac_counts_the_steps_that_it_took():
    module = net()
    optimizer = KFAC(module)
    with pytest.raises(RuntimeError):
        optimizer.step(lambda: residual(module).detach())
    optimizer.step(lambda: residual(module))
    assert (optimizer.param_groups[0]["steps"], optimizer.param_groups[0]["refreshes"]) == (1, 1)


def test_kfac_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"linear layers with a bias only, and 0\.weight belongs to none"):
        KFAC(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match=r"0\.weight belongs to none"):
        KFAC(nn.Sequential(nn.Linear(2, 2, bias=False)))


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0.0}, {"damping": -1.0}, {"clip": 0.0}, {"momentum": 1.0}, {"decay": 1.0}, {"interval": 0}],
)
def test_kfac_refuses_nonsense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        KFAC(net(), **settings)


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"epsilon": 0.0}, {"betas": (1.0, 0.5)}, {"interval": 0}])
def test_shampoo_refuses_nonsense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Shampoo([nn.Parameter(torch.ones(1))], **settings)
