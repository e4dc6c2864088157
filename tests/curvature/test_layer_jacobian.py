"""The Jacobian by layers against the dense one of torch.func, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from fields.cases import MILD, NAMES, generator, random_tangent
from splatopt.core.checks import InputError
from splatopt.curvature.layer_jacobian import layer_jacobian
from splatopt.fields import Architecture, ImageTask, make_field

BATCH = torch.tensor([3, 17, 0, 22, 9])


def colour_task(name: str, outputs: int = 3) -> ImageTask:
    source = generator(2)
    field = make_field(name, Architecture(2, outputs, 5, 1), source, **MILD.get(name, {})).double()
    return ImageTask(field, torch.rand(5, 6, outputs, generator=source, dtype=torch.float64))


def dense_jacobian(task: ImageTask, batch: torch.Tensor = BATCH) -> dict[str, torch.Tensor]:
    """∂r/∂θ by parameter, (outputs·rows, numbers), residual by residual."""
    twin = ImageTask(task.module, task.image)

    def residual(tensors):
        found = functional_call(task.module, tensors, (task.points[batch],)) - task.colors[batch]
        return (found * (2 / found.numel()) ** 0.5).T.reshape(-1)

    assert torch.allclose(residual(task.parameters), twin.residual(batch).T.reshape(-1).detach())
    return {name: part.flatten(1) for name, part in jacrev(residual)(dict(task.parameters)).items()}


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_gram_and_products_are_the_dense_ones(name, outputs):
    task = colour_task(name, outputs)
    found, dense = layer_jacobian(task.module, lambda: task.residual(BATCH)), dense_jacobian(task)
    whole = torch.cat(list(dense.values()), dim=1)
    assert whole.abs().max() > 1e-3
    assert torch.allclose(found.gram(), whole @ whole.T, rtol=1e-11, atol=1e-13)
    tangent = random_tangent(task.parameters)
    flat = torch.cat([tangent[part].reshape(-1) for part in dense])
    assert torch.allclose(found.jvp(tangent).reshape(-1), whole @ flat, rtol=1e-11, atol=1e-13)
    cotangent = torch.randn(outputs, len(BATCH), generator=generator(5), dtype=torch.float64)
    for part, value in found.vjp(cotangent).items():
        expected = (dense[part].T @ cotangent.reshape(-1)).reshape(value.shape)
        assert torch.allclose(value, expected, rtol=1e-11, atol=1e-13), part
    assert set(found.vjp(cotangent)) == set(task.parameters)


def test_a_network_with_other_parameters_or_rows_is_refused():
    with pytest.raises(InputError, match=r"0\.weight belongs to none"):
        layer_jacobian(nn.Sequential(nn.Linear(2, 2, bias=False)), lambda: torch.zeros(1))
    with pytest.raises(InputError, match="there is none"):
        layer_jacobian(nn.Tanh(), lambda: torch.zeros(1))
    module = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(InputError, match="must have one row in each layer"):
        layer_jacobian(module, lambda: module(torch.ones(3, 4, 2)).sum(dim=1))
