"""gsplat's own strategies of growth, unchanged, over our rasterization."""

from __future__ import annotations

import math

import pytest
import torch

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.density.relocation import relocation
from splatopt.torch_api import compute_relocation, gsplat_on_cpu, quat_scale_to_covar_preci, rasterization
from torch_api.scenes import plain_scene

strategies = pytest.importorskip("gsplat.strategy", reason="gsplat is not installed")
needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not built")

RATES = {"means": 1e-2, "scales": 5e-2, "quats": 1e-2, "opacities": 5e-2, "sh": 1e-2}


def trained(strategy, steps: int, post: dict[str, float], packed: bool = False, absgrad: bool = False):
    """Train 80 Gaussians towards the photographs of others; returns the parameters, their counts and the losses."""
    truth = plain_scene(torch.float32, rows=60, views=2, degree=1, seed=21)
    cameras = {name: truth[name].detach() for name in ("viewmats", "Ks")}
    shared = {**cameras, "width": 41, "height": 30, "sh_degree": 1}
    with torch.no_grad():
        wanted = truth["means"], truth["quats"], 1.5 * truth["scales"], truth["opacities"], truth["colors"]
        photographs, _, _ = rasterization(*wanted, **shared)
    start = plain_scene(torch.float32, rows=80, views=1, degree=1, seed=22)
    values = {
        "means": start["means"].detach(),
        "scales": start["scales"].detach().log(),
        "quats": start["quats"].detach(),
        "opacities": torch.logit(start["opacities"].detach().clamp(0.01, 0.9)),
        "sh": start["colors"].detach(),
    }
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})
    optimizers = {name: torch.optim.Adam([{"params": params[name], "lr": RATES[name]}]) for name in params}
    strategy.check_sanity(params, optimizers)
    state, counts, losses = strategy.initialize_state(), [len(params["means"])], []
    for step in range(steps):
        image, _, meta = rasterization(
            params["means"],
            params["quats"],
            params["scales"].exp(),
            params["opacities"].sigmoid(),
            params["sh"],
            **shared,
            packed=packed,
            absgrad=absgrad,
        )
        strategy.step_pre_backward(params, optimizers, state, step, meta)
        loss = (image - photographs).abs().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, meta, **post)
        counts.append(len(params["means"]))
        losses.append(float(loss.detach()))
    return params, counts, losses


@needs_native
@pytest.mark.parametrize(("packed", "absgrad"), [(False, False), (True, False), (False, True)])
def test_default_strategy_clones_splits_and_prunes(packed: bool, absgrad: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    from gsplat.strategy import default

    done = dict.fromkeys(("duplicate", "split", "remove"), 0)
    for name in done:
        whole = getattr(default, name)

        def counted(*, mask, name=name, whole=whole, **given):
            done[name] += int(mask.sum())
            whole(mask=mask, **given)

        monkeypatch.setattr(default, name, counted)
    strategy = strategies.DefaultStrategy(
        refine_start_iter=5,
        refine_every=8,
        refine_stop_iter=100,
        reset_every=1000,
        prune_opa=0.05,
        grow_grad2d=5e-4 if absgrad else 2e-4,
        grow_scale3d=0.15,
        refine_scale2d_stop_iter=100,
        absgrad=absgrad,
    )
    params, counts, losses = trained(strategy, 30, {"packed": packed}, packed, absgrad)
    assert all(done.values()), done
    assert len(set(counts)) > 1
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.isfinite().all() for value in params.values())


@needs_native
def test_mcmc_strategy_relocates_and_adds_within_the_context() -> None:
    torch.manual_seed(0)
    strategy = strategies.MCMCStrategy(
        cap_max=90, noise_lr=10.0, refine_start_iter=5, refine_every=8, refine_stop_iter=100, min_opacity=0.05
    )
    with gsplat_on_cpu():
        params, counts, losses = trained(strategy, 30, {"lr": 1e-3})
    assert counts[0] == 80
    assert counts[-1] == 90
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.isfinite().all() for value in params.values())


def test_the_context_replaces_two_functions_and_puts_them_back() -> None:
    from gsplat.strategy import ops

    before = dict(vars(ops))
    with pytest.raises(KeyError), gsplat_on_cpu():
        changed = {name for name, value in vars(ops).items() if before.get(name) is not value}
        assert changed == {"compute_relocation", "quat_scale_to_covar_preci"}
        assert ops.compute_relocation is compute_relocation
        assert ops.quat_scale_to_covar_preci is quat_scale_to_covar_preci
        raise KeyError
    assert dict(vars(ops)) == before


def test_relocated_gaussians_are_as_opaque_together_and_as_wide() -> None:
    """o' = 1 - (1-o)^(1/n), and s' from the sum of the paper's equation 9, in float64."""
    opacities, copies = torch.tensor([0.9, 0.5, 0.02]), torch.tensor([4, 1, 70])
    scales = torch.rand(3, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    binoms = torch.zeros(51, 51)
    shared, widths = compute_relocation(opacities, scales, copies, binoms)
    assert shared.dtype == widths.dtype == torch.float32
    for row, n in enumerate((4, 1, 51)):
        o = 1 - (1 - float(opacities[row])) ** (1 / n)
        terms = [math.comb(i, k) * (-1) ** k / math.sqrt(k + 1) * o ** (k + 1) for i in range(n) for k in range(i + 1)]
        assert float(shared[row]) == pytest.approx(o, rel=1e-5)
        assert torch.allclose(widths[row], scales[row] * float(opacities[row]) / sum(terms), rtol=1e-3)
    column, _ = compute_relocation(opacities[:, None], scales, copies, binoms)
    assert torch.equal(column[:, 0], shared)
    assert torch.equal(shared, relocation(opacities, copies)[0].float())
    with pytest.raises(InputError, match="51"):
        compute_relocation(opacities, scales, copies, torch.zeros(60, 60))


def test_a_missing_gsplat_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gsplat.strategy.ops", None)
    with pytest.raises(InputError, match="pip install gsplat"), gsplat_on_cpu():
        pass
