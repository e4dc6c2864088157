"""Files of learned weights: those that are shipped, and those that cannot be used."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from meta.clouds import stirred
from meta.toys import SHAPE
from splatopt.core.checks import InputError
from splatopt.meta import weights as weights_module
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.weights import SHIPPED, load_weights, save_weights, shipped_names


def test_shipped_weights_are_whole_small_and_described():
    assert "tiny" in shipped_names()
    total = sum(path.stat().st_size for path in SHIPPED.iterdir())
    assert total < 5 * 2**20
    for name in shipped_names():
        loaded = load_weights(name)
        assert loaded.network.options == SIZES[name]
        assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
        assert {"command", "seed", "hours", "machine"} <= set(loaded.metadata)


def test_weights_come_back_as_they_were(tmp_path):
    network = stirred(LearnedNetwork(SHAPE))
    rates = InnerRates(means=1e-3, beta1=0.5)
    save_weights(tmp_path / "mine.safetensors", network, rates, {"seed": 3})
    loaded = load_weights(str(tmp_path / "mine.safetensors"))
    assert loaded.rates == rates
    assert loaded.metadata == {"seed": 3}
    for (name, value), other in zip(network.state_dict().items(), loaded.network.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def described(path, **changed):
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_weights_that_cannot_be_used_are_refused(untrained, tmp_path, monkeypatch):
    original = Path(untrained)

    def copy(name):
        target = tmp_path / f"{name}.safetensors"
        shutil.copy(original, target)
        shutil.copy(original.with_suffix(".json"), target.with_suffix(".json"))
        return target

    damaged = copy("damaged")
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    old, odd, strange, other = copy("old"), copy("odd"), copy("strange"), copy("other")
    described(old, format="splatopt-learned-0")
    described(odd, network={"width": 8})
    described(strange, rates=json.loads(original.with_suffix(".json").read_text())["rates"] | {"means": "fast"})
    wide = json.loads(original.with_suffix(".json").read_text())["network"] | {"width": 12}
    described(other, network=wide)
    huge = copy("huge")
    described(huge, network=wide | {"width": 10**9})
    alone = copy("alone")
    alone.with_suffix(".json").unlink()
    no_json = copy("no-json")
    no_json.with_suffix(".json").write_text("{")
    for path, message in (
        (damaged, "damaged"),
        (old, "splatopt-learned-0"),
        (odd, "network must name"),
        (strange, r"rates: means"),
        (other, "do not fit"),
        (huge, "width must lie"),
        (alone, "cannot be read"),
        (no_json, "cannot be read"),
        (tmp_path / "none.safetensors", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_weights(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="did you mean tiny"):
        load_weights("tiiny")
    monkeypatch.setattr(weights_module, "_MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than"):
        load_weights(untrained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.int(), "enter.bias must hold .*got torch.int32"),
        (lambda value: torch.full_like(value, math.nan), "enter.bias must hold finite"),
        (lambda value: torch.full_like(value, 1e300, dtype=torch.float64), "enter.bias must hold finite"),
        (lambda value: value.half(), ""),
    ],
)
def test_weights_must_be_finite_floating_point_numbers(tmp_path, change, message):
    network = LearnedNetwork(SHAPE)
    tensors = network.state_dict()
    network.state_dict = lambda: tensors | {"enter.bias": change(tensors["enter.bias"])}
    save_weights(tmp_path / "odd.safetensors", network, InnerRates(), {})
    if not message:
        loaded = load_weights(str(tmp_path / "odd.safetensors")).network.enter.bias
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, tensors["enter.bias"], rtol=1e-3, atol=1e-4)
        return
    with pytest.raises(InputError, match=message) as caught:
        load_weights(str(tmp_path / "odd.safetensors"))
    assert "\n" not in str(caught.value)
