"""A scene as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splatopt.core.checkpoint import DamagedCheckpointError, check_tensor_names, damage_in
from splatopt.scene.gaussians import GaussianCloud

_NAMES = tuple(GaussianCloud.__dataclass_fields__)


def saved_cloud(tensors: Mapping[str, Tensor], where: str) -> GaussianCloud:
    """Return the scene of a checkpoint, on its tensors.

    Args:
        tensors: By their names in a scene, and no others.
        where: The checkpoint, for messages.

    Raises:
        DamagedCheckpointError: A tensor is missing, there is another one, or they are not float32, finite and with
            one row for each Gaussian.
    """
    check_tensor_names(tensors, _NAMES, f"{where}: the scene")
    for name, value in tensors.items():
        if value.dtype != torch.float32 or not value.dim() or not len(value):
            came = f"{tuple(value.shape)} {value.dtype}"
            raise DamagedCheckpointError(f"{where}: {name} of the scene must hold rows of torch.float32, got {came}")
    try:
        cloud = GaussianCloud(**tensors)
    except ValueError as error:
        raise DamagedCheckpointError(f"{where}: {error}") from error
    with damage_in(where):
        cloud.check_finite(where)
    return cloud
