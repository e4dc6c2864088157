"""Each Gaussian's nearest others."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.constants import MAX_COORDINATE
from splatopt.kernels import takes

NEIGHBOUR_REFRESH = 32
"""Steps between two searches. A search costs about a step of the network, and means move little. Unit: steps."""


def nearest_others(
    positions: Float[Tensor, "n 3"], count: int, threads: int = 0, isa: str = "auto"
) -> Int[Tensor, "n k"]:
    """Return the rows of the ``count`` nearest other points of each point, nearest first.

    Args:
        positions: (N, 3), world units.
        count: k; 0 gives (N, 0).
        threads: Threads, 0 for one per processor.
        isa: Instruction set of the native module.

    Returns:
        (N, k) int64; of points that are equally far the smaller row, unless the native module is missing.

    Raises:
        InputError: There are not more points than ``count``.
    """
    total = len(positions)
    if count == 0:
        return torch.zeros(total, 0, dtype=torch.int64, device=positions.device)
    if total <= count:
        raise InputError(
            f"the learned step looks at {count} neighbours of each Gaussian and needs at least {count + 1} Gaussians, "
            f"got {total}; take another optimizer for so small a scene"
        )
    positions = torch.nan_to_num(positions.detach(), 0.0, 0.0, 0.0).clamp(-MAX_COORDINATE, MAX_COORDINATE)
    if takes([positions]):
        from splatopt.kernels.neighbours import nearest_neighbours

        return nearest_neighbours(positions, count)[0]
    if native.available():
        rows = torch.empty(total, count, dtype=torch.int64)
        native.nearest_others(positions.float().cpu().contiguous(), rows, threads, isa)
        return rows.to(positions.device)
    return _by_scipy(positions.cpu().double().numpy(), count, threads).to(positions.device)


def _by_scipy(points: np.ndarray, count: int, threads: int) -> Int[Tensor, "n k"]:
    """The same where the native module is missing; of points that are equally far any."""
    from scipy.spatial import cKDTree

    _, found = cKDTree(points).query(points, k=count + 1, workers=threads or -1)
    own = found == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True  # among more than count + 1 points at one place a point may not find itself
    return torch.from_numpy(found[~own].reshape(len(points), count).astype(np.int64))
