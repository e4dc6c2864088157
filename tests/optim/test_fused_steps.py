"""The fused native passes against the same steps in torch, in float64, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core import native
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.optim.hellinger import GAUSSIAN_TENSORS

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")

ISAS = native.load().supported_isas() if native.available() else []
STEPS = 3


class Scene(Quadratic):
    """A quadratic over a cloud with every awkward Gaussian: spheres, needles, clear, opaque, dark ones."""

    def __init__(self, dtype: torch.dtype, rows: int, rest: int) -> None:
        super().__init__(rows=rows, dtype=dtype)
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        values = {
            "means": 3 * normal(rows, 3),
            "log_scales": 2 * normal(rows, 3) - 3,
            "quats": normal(rows, 4) * torch.exp(normal(rows, 1)),
            "logit_opacities": 4 * normal(rows),
            "sh_dc": 1.5 * normal(rows, 3),
            "sh_rest": normal(rows, rest, 3),
        }
        values["log_scales"][0] = -4.0
        values["log_scales"][1] = torch.tensor([-3.0, -3.0 + 1e-4, -3.0 - 2e-4])
        values["log_scales"][2] = torch.tensor([-20.0, 3.0, 0.0])
        values["logit_opacities"][3:5] = torch.tensor([-30.0, 30.0])
        self.values = {name: value.to(dtype) for name, value in values.items()}
        self.targets = {name: (value + normal(*value.shape)).to(dtype) for name, value in values.items()}
        self.curvature = {
            name: (torch.exp(4 * normal(*value.shape)) * (normal(*value.shape) > -1)).to(dtype)
            for name, value in values.items()
        }

        self.asked = 0

    def gradient(self, batch: object) -> Evaluation:
        """Noise that the values do not change: no rounding of theirs may turn the sign of a momentum."""
        self.asked += 1
        generator = torch.Generator().manual_seed(self.asked)
        noise = {name: torch.randn(value.shape, generator=generator) for name, value in self.values.items()}
        gradient = {name: value.to(self.values[name].dtype) for name, value in noise.items()}
        return Evaluation(loss=1.0, gradient=gradient, seen=None, facts={})


def stepped(name: str, scene: Scene, options: dict[str, object], threads: int = 2) -> tuple[dict, dict]:
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
    ("tr2", {"refresh": 2, "curvature_factor": 3.0}),
    ("tr2", {"epsilon_start": 0.3, "most_relative_distance": 0.9}),
]


@pytest.mark.parametrize(("rows", "rest"), [(37, 15), (16, 0), (5, 3), (1100, 8)])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_fused_pass_is_the_step(monkeypatch, isa, name, options, rows, rest) -> None:
    expected, expected_states = stepped(name, Scene(torch.float64, rows, rest), options)
    start = Scene(torch.float64, rows, rest).values
    workers = native.workers(2, isa)
    used = []
    monkeypatch.setattr(native, "workers", lambda threads: used.append(threads) or workers)
    values, states = stepped(name, Scene(torch.float32, rows, rest), options)
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


@pytest.mark.parametrize("name", ["sign-tr", "adam-tr", "tr2"])
def test_the_bits_do_not_depend_on_the_number_of_threads(name) -> None:
    one, two = (stepped(name, Scene(torch.float32, 5000, 3), {}, threads)[0] for threads in (1, 2))
    for tensor in GAUSSIAN_TENSORS:
        assert torch.equal(one[tensor], two[tensor])


@pytest.mark.parametrize("name", ["sign-tr", "adam-tr", "tr2", "tr2-paper"])
def test_quaternions_keep_their_lengths(name) -> None:
    scene = Scene(torch.float32, 500, 0)
    before = scene.values["quats"].double().norm(dim=1)
    start = scene.values["quats"].clone()
    values, _ = stepped(name, scene, {})
    torch.testing.assert_close(values["quats"].double().norm(dim=1), before, rtol=1e-6, atol=0)
    assert not torch.equal(values["quats"], start)
