"""LPIPS against a formula written out once more, and never with weights that are not there."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from splatopt.core.checks import InputError
from splatopt.metrics.lpips import NETWORKS, Lpips, find_lpips

# Layers of the two networks as their papers list them: channels of a convolution, or a pooling.
VGG = [64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512]
TAPS = {"vgg": [3, 8, 15, 22, 29], "alex": [1, 4, 7, 9, 11]}


def vgg() -> nn.Sequential:
    layers, width = [], 3
    for one in VGG:
        layers += [nn.MaxPool2d(2, 2)] if one == "P" else [nn.Conv2d(width, one, 3, padding=1), nn.ReLU()]
        width = width if one == "P" else one
    return nn.Sequential(*layers)


def alex() -> nn.Sequential:
    pool, relu = nn.MaxPool2d(3, 2), nn.ReLU()
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), relu, pool, nn.Conv2d(64, 192, 5, padding=2), relu, pool),
        *(nn.Conv2d(192, 384, 3, padding=1), relu, nn.Conv2d(384, 256, 3, padding=1), relu),
        *(nn.Conv2d(256, 256, 3, padding=1), relu),
    )


def backbone(network: str) -> nn.Sequential:
    torch.manual_seed(0)
    return vgg() if network == "vgg" else alex()


def weights(network: str) -> tuple[dict, dict]:
    """Random ones, under the names that the files use."""
    net = backbone(network)
    features = {f"features.{name}": value.detach() for name, value in net.state_dict().items()}
    widths = [
        next(m.out_channels for m in reversed(net[: tap + 1]) if isinstance(m, nn.Conv2d)) for tap in TAPS[network]
    ]
    generator = torch.Generator().manual_seed(1)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(widths)}
    return features, heads


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(70, 80, 3, generator=generator), torch.rand(70, 80, 3, generator=generator)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_papers_formula(network):
    features, heads = weights(network)
    image, target = images()
    net, expected, outputs = backbone(network), 0.0, []
    for one in (image, target):
        scaled = (2 * one - 1 - torch.tensor([-0.030, -0.088, -0.188])) / torch.tensor([0.458, 0.448, 0.450])
        value, taps = scaled.permute(2, 0, 1)[None], []
        with torch.no_grad():
            for number, layer in enumerate(net):
                value = layer(value)
                if number in TAPS[network]:
                    taps.append(value[0] / (value[0].square().sum(dim=0) + 1e-8).sqrt())
        outputs.append(taps)
    for stage, (one, other) in enumerate(zip(*outputs, strict=True)):
        weight = heads[f"lin{stage}.model.1.weight"].reshape(-1)
        expected += float(((one - other).square() * weight[:, None, None]).sum(dim=0).mean())
    assert Lpips(network, features, heads)(image, target) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


@pytest.mark.parametrize("network", NETWORKS)
def test_equal_images_are_at_no_distance(network):
    image, target = images()
    lpips = Lpips(network, *weights(network))
    assert lpips(image, image.clone()) == 0
    assert lpips(image, target) == pytest.approx(lpips(target, image), rel=1e-6)
    assert math.isfinite(lpips(torch.zeros_like(image), image))
    with pytest.raises((ValueError, TypeCheckError)):
        lpips(image, target[:-1])


@pytest.mark.parametrize("network", NETWORKS)
def test_it_agrees_with_torchmetrics(network, monkeypatch, tmp_path):
    """Their code and the true heads, on a random backbone."""
    theirs = importlib.import_module("torchmetrics.functional.image.lpips")
    features, _ = weights(network)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: backbone(network))
    torch.save(features, tmp_path / FILES[network])
    image, target = images()
    expected = theirs._LPIPS(net=network)(*(one.permute(2, 0, 1)[None] for one in (image, target)), normalize=True)
    assert find_lpips(network, tmp_path)(image, target) == pytest.approx(expected.item(), rel=1e-5)


def test_a_weight_that_is_missing_is_named():
    features, heads = weights("alex")
    del features["features.6.bias"]
    with pytest.raises(InputError, match=r"not the weights of LPIPS alex: 'features\.6\.bias' is missing"):
        Lpips("alex", features, heads)


FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_that_are_not_there_are_said_to_be_left_out(network, tmp_path):
    said = find_lpips(network, tmp_path)
    assert said == f"LPIPS {network} is left out: its weights {FILES[network]} are not on this machine"
    assert list(tmp_path.iterdir()) == []


def test_weights_on_the_machine_are_used(tmp_path):
    """The heads come with torchmetrics; the backbone's are random here."""
    features, _ = weights("alex")
    torch.save(features, tmp_path / FILES["alex"])
    found = find_lpips("alex", tmp_path)
    assert isinstance(found, Lpips)
    image, target = images()
    assert 0 < found(image, target) < 10


class Bomb:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("content", [Bomb(), [1, 2], {"features.0.weight": 3}])
def test_a_file_that_holds_no_weights_is_refused_and_never_run(tmp_path, content, capsys):
    torch.save(content, tmp_path / FILES["alex"])
    with pytest.raises(InputError, match="as weights|holds no weights"):
        find_lpips("alex", tmp_path)
    assert capsys.readouterr().out == ""
