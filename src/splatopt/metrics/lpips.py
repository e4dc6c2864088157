"""LPIPS (Zhang et al. 2018): distance of two images in the features of a network trained to classify.

The networks are written out here, so that nothing is needed but their weights: ImageNet's for the features
(torchvision's files) and the five linear heads (torchmetrics brings them). Weights are looked for on this
machine and never downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from splatopt.core.checks import InputError

INPUT_RANGE = "images in [0, 1], scaled to [-1, 1] as the networks were calibrated"
"""Stated beside every number: feeding [0, 1] unscaled gives other ones."""

MIN_SIDE = 32
"""Smallest side of an image, pixels: of a smaller one AlexNet's last stages have nothing left."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class _Stage:
    """Convolutions with a ReLU each, whose last output is compared; a pooling may come before them."""

    convolutions: tuple[int, ...]
    pool: int = 0
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class _Network:
    """A backbone: its weight file, and its stages by torchvision's layer numbers."""

    file: str
    stages: tuple[_Stage, ...]


_NETWORKS = {
    "vgg": _Network(
        "vgg16-397923af.pth",
        (
            _Stage((0, 2)),
            _Stage((5, 7), pool=2),
            _Stage((10, 12, 14), pool=2),
            _Stage((17, 19, 21), pool=2),
            _Stage((24, 26, 28), pool=2),
        ),
    ),
    "alex": _Network(
        "alexnet-owt-7be5be79.pth",
        (
            _Stage((0,), stride=4, padding=2),
            _Stage((3,), pool=3, padding=2),
            _Stage((6,), pool=3),
            _Stage((8,)),
            _Stage((10,)),
        ),
    ),
}
NETWORKS = tuple(_NETWORKS)
"""Names of the networks: vgg and alex."""


class Lpips:
    """LPIPS with one network: Σ_l mean over pixels of w_l·(φ̂_l(x) - φ̂_l(y))², φ̂ of unit length over channels."""

    def __init__(self, network: str, features: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Keep the weights.

        Args:
            network: vgg or alex.
            features: ``features.<layer>.weight`` and ``.bias``, as torchvision names them.
            heads: ``lin<stage>.model.1.weight``, (1, C, 1, 1).

        Raises:
            InputError: A weight is missing.
        """
        self._stages = _NETWORKS[network].stages
        try:
            self._layers = [
                [(features[f"features.{at}.weight"], features[f"features.{at}.bias"]) for at in stage.convolutions]
                for stage in self._stages
            ]
            self._heads = [heads[f"lin{number}.model.1.weight"] for number in range(len(self._stages))]
        except KeyError as error:
            raise InputError(f"these are not the weights of LPIPS {network}: {error} is missing") from error

    def __call__(self, image: Float[Tensor, "height width 3"], target: Float[Tensor, "height width 3"]) -> float:
        """Return the distance of two images with values in [0, 1]; 0 for equal ones."""
        with torch.no_grad():
            return float(self.distance(image, target))

    def distance(self, image: Float[Tensor, "height width 3"], target: Float[Tensor, "height width 3"]) -> Tensor:
        """Return the distance as a tensor that can be differentiated; see :meth:`__call__`."""
        if image.shape != target.shape:
            raise ValueError(
                f"image and target must have one shape, got {tuple(image.shape)} and {tuple(target.shape)}"
            )
        pairs = zip(self._features(image), self._features(target), self._heads, strict=True)
        terms = [functional.conv2d((one - other) ** 2, head).mean() for one, other, head in pairs]
        return torch.stack(terms).sum()

    def _features(self, image: Tensor) -> Sequence[Tensor]:
        """Outputs of all stages, each of unit length over its channels."""
        shift, scale = torch.tensor(_SHIFT)[:, None, None], torch.tensor(_SCALE)[:, None, None]
        values = ((2 * image.float().permute(2, 0, 1) - 1 - shift) / scale)[None]
        outputs = []
        for stage, layers in zip(self._stages, self._layers, strict=True):
            if stage.pool:
                values = functional.max_pool2d(values, stage.pool, 2)
            for weight, bias in layers:
                values = functional.relu(functional.conv2d(values, weight, bias, stage.stride, stage.padding))
            outputs.append(values / torch.sqrt(1e-8 + (values**2).sum(dim=1, keepdim=True)))
        return outputs


def find_lpips(network: str, folder: Path | None = None) -> Lpips | str:
    """Return LPIPS with weights from this machine, or in a sentence what is missing.

    Args:
        network: vgg or alex.
        folder: Where the backbone's weights lie; PyTorch's hub folder when None.

    Raises:
        InputError: A file is there and does not hold these weights.
    """
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    backbone = folder / _NETWORKS[network].file
    found = importlib.util.find_spec("torchmetrics")
    if found is None or not found.submodule_search_locations:
        return f"LPIPS {network} is left out: its heads come with torchmetrics, which is not installed"
    heads = Path(found.submodule_search_locations[0]) / "functional" / "image" / "lpips_models" / f"{network}.pth"
    for path in (backbone, heads):
        if not path.is_file():
            return f"LPIPS {network} is left out: its weights {path.name} are not on this machine"
    return Lpips(network, _weights(backbone), _weights(heads))


def _weights(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a file, read without running any code that may be in it."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the file, it holds no weights
        raise InputError(f"{path} cannot be read as weights; put the file there again") from error
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise InputError(f"{path} holds no weights; put the file there again")
    return values
