"""Fields: their activations, their starts, their registry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fields.cases import NAMES, generator
from splatopt.core.checks import InputError
from splatopt.fields import Architecture, find_field, make_field, register_field
from splatopt.fields.networks import ReluField, linear_layers

POINT = torch.tensor([[0.3, -0.7]], dtype=torch.float64)


def small(name: str, depth: int = 0, **constants):
    return make_field(name, Architecture(2, 1, 3, depth), generator(), **constants).double()


def first(field):
    """z of the input layer at POINT, computed by hand."""
    weight, bias = linear_layers(field)[0].weight, linear_layers(field)[0].bias
    return field.encode(POINT) @ weight.T + bias


def head(field, features):
    return features @ field.head.weight.T + field.head.bias


@pytest.mark.parametrize(
    ("name", "constants", "activation"),
    [
        ("gaussian", {"sigma": 0.2}, lambda z: torch.exp(-(z**2) / (2 * 0.2**2))),
        ("sine", {"omega": 7.0}, lambda z: torch.sin(7 * z)),
        ("sinc", {"omega": 7.0}, lambda z: torch.sin(7 * z) / (7 * z)),
        ("relu", {}, lambda z: z.clamp(min=0)),
        ("relu-pe", {"frequencies": 3}, lambda z: z.clamp(min=0)),
    ],
)
def test_a_field_is_its_formula(name, constants, activation):
    field = small(name, **constants)
    assert torch.allclose(field(POINT), head(field, activation(first(field))), rtol=1e-12)


def test_the_wavelet_is_its_formula_with_two_linears():
    field = small("wavelet", omega=3.0, scale=2.0)
    wave, envelope = (POINT @ layer.weight.T + layer.bias for layer in linear_layers(field)[:2])
    expected = torch.cos(3 * wave) * torch.exp(-((2 * envelope) ** 2))
    assert torch.allclose(field(POINT), head(field, expected), rtol=1e-12)


def test_the_encoding_has_sines_and_cosines_of_octaves():
    encoded = small("relu-pe", frequencies=2).encode(POINT)
    angles = [octave * math.pi * x for x in (0.3, -0.7) for octave in (1, 2)]
    expected = [0.3, -0.7, *map(math.sin, angles), *map(math.cos, angles)]
    assert torch.allclose(encoded, torch.tensor([expected], dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_paper(name):
    field = make_field(name, Architecture(2, 3), generator())
    layers = linear_layers(field)
    per_layer = 2 if name == "wavelet" else 1
    assert len(layers) == 4 * per_layer + 1, "an input layer, three hidden ones and the head"
    assert {layer.out_features for layer in layers[:-1]} == {256}
    assert layers[0].in_features == (2 + 2 * 2 * 8 if name == "relu-pe" else 2)
    assert field(torch.zeros(5, 4, 2)).shape == (5, 4, 3)


@pytest.mark.parametrize("name", NAMES)
def test_starts_are_bounded_and_drawn_from_the_generator(name):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    field = make_field(name, Architecture(2, 3), generator(4))
    assert torch.equal(torch.rand(1), expected), "PyTorch's own generator is left alone"
    again = make_field(name, Architecture(2, 3), generator(4))
    other = make_field(name, Architecture(2, 3), generator(5))
    assert all(torch.equal(a, b) for a, b in zip(field.parameters(), again.parameters(), strict=True))
    assert not torch.equal(field.head.weight, other.head.weight)
    for index, layer in enumerate(linear_layers(field)):
        bound = 1 / math.sqrt(layer.in_features)
        if name == "sine":
            bound = 1 / 2 if index == 0 else math.sqrt(6 / 256) / 30
        assert layer.weight.abs().max() <= bound
        # Uniform on ±b has the deviation b/√3; the smallest weight here has 512 entries.
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert layer.bias.abs().max() <= 1 / math.sqrt(layer.in_features)
        assert layer.bias.std() > 0


def test_a_linear_layer_of_pytorch_starts_as_ours():
    ours, torch_own = make_field("relu", Architecture(64, 1, 256, 0), generator()).layers[0], nn.Linear(64, 256)
    for name in ("weight", "bias"):
        mine, theirs = getattr(ours, name), getattr(torch_own, name)
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)


def test_unknown_names_and_constants_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'gausian'.*did you mean gaussian"):
        find_field("gausian")
    with pytest.raises(InputError, match=r"'sine' has no constant 'sigma'; it takes omega"):
        small("sine", sigma=1.0)
    with pytest.raises(InputError, match="it takes none"):
        small("relu", omega=1.0)


def test_a_field_of_ones_own_can_be_registered(monkeypatch):
    from splatopt.fields import registry

    monkeypatch.setattr(registry, "_FIELDS", dict(registry._FIELDS))
    register_field("mine", ReluField)
    assert isinstance(small("mine"), ReluField)
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_field("mine", ReluField)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"width": 0}, "width"), ({"width": 10_000}, "width"), ({"depth": -1}, "depth"), ({"depth": 101}, "depth")],
)
def test_impossible_sizes_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Architecture(2, 3, **settings)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("gaussian", {"sigma": 0.0}),
        ("sine", {"omega": -1.0}),
        ("wavelet", {"scale": 0.0}),
        ("relu-pe", {"frequencies": 0}),
    ],
)
def test_impossible_constants_are_refused(name, constants):
    with pytest.raises(ValueError, match=next(iter(constants))):
        small(name, **constants)
