"""Gaussians as a browser draws them: chosen by size and opacity, bounded in number, with colours of degree 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from splatopt.core.constants import SH_C0
from splatopt.scene.gaussians import GaussianCloud

MAX_SHOWN = 300_000
"""Gaussians that a browser is sent at most, 32 bytes each."""

_MAX_SIZE = 200.0
"""Standard deviation beyond which the 16 bits of a covariance end, local units."""


@dataclass(frozen=True)
class Thresholds:
    """Which Gaussians are shown.

    Attributes:
        min_opacity: Those at least as opaque.
        max_size: Those whose largest standard deviation is at most this, units of the cloud.
    """

    min_opacity: float = 0.0
    max_size: float = math.inf


@dataclass(frozen=True)
class Snapshot:
    """What a browser is to know of a cloud: a copy without the colour's higher degrees, a quarter of its numbers.

    Attributes:
        means: Centres, (n, 3).
        log_scales: (n, 3).
        quats: (n, 4), wxyz, not normalised.
        logits: Of the opacities, (n,).
        sh_dc: (n, 3).
    """

    means: Float32[np.ndarray, "n 3"]
    log_scales: Float32[np.ndarray, "n 3"]
    quats: Float32[np.ndarray, "n 4"]
    logits: Float32[np.ndarray, " n"]
    sh_dc: Float32[np.ndarray, "n 3"]

    @classmethod
    def of(cls, cloud: GaussianCloud) -> Snapshot:
        """Copy a live cloud."""
        own = (cloud.means, cloud.log_scales, cloud.quats, cloud.logit_opacities)
        kept = [tensor.detach().to("cpu").numpy().astype(np.float32) for tensor in (*own, cloud.sh_dc)]
        return cls(*kept)

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.means)


@dataclass(frozen=True)
class BrowserSplats:
    """What viser takes.

    Attributes:
        centers: (n, 3).
        covariances: (n, 3, 3).
        colors: Red, green, blue in [0, 1], (n, 3).
        opacities: (n, 1).
    """

    centers: Float32[np.ndarray, "n 3"]
    covariances: Float32[np.ndarray, "n 3 3"]
    colors: Float32[np.ndarray, "n 3"]
    opacities: Float32[np.ndarray, "n 1"]


def chosen_rows(snapshot: Snapshot, thresholds: Thresholds, max_shown: int = MAX_SHOWN) -> Int64[np.ndarray, " m"]:
    """Return which Gaussians are shown, in their order.

    Where more pass than may be shown, it is those with the greatest opacity times area.
    """
    opacities, sizes = _sigmoid(snapshot.logits), np.sort(snapshot.log_scales, axis=1)
    passing = (opacities >= thresholds.min_opacity) & np.isfinite(snapshot.means).all(axis=1)
    if math.isfinite(thresholds.max_size):
        passing &= sizes[:, 2] <= math.log(thresholds.max_size)
    rows = np.flatnonzero(passing).astype(np.int64)
    if len(rows) <= max_shown:
        return rows
    weights = np.log(opacities[rows] + 1e-12) + sizes[rows, 1] + sizes[rows, 2]
    return np.sort(rows[np.argpartition(-weights, max_shown)[:max_shown]])


def browser_splats(snapshot: Snapshot, rows: Int64[np.ndarray, " m"]) -> BrowserSplats:
    """Return Gaussians with their covariances R diag(s²) Rᵀ, sizes cut at what 16 bits hold."""
    scales = np.exp(np.minimum(snapshot.log_scales[rows], math.log(_MAX_SIZE)))
    axes = _rotations(snapshot.quats[rows]) * scales[:, None, :]
    return BrowserSplats(
        centers=np.ascontiguousarray(snapshot.means[rows]),
        covariances=axes @ axes.transpose(0, 2, 1),
        colors=np.clip(0.5 + SH_C0 * snapshot.sh_dc[rows], 0, 1).astype(np.float32),
        opacities=_sigmoid(snapshot.logits[rows])[:, None],
    )


def _sigmoid(values: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-values))).astype(np.float32)


def _rotations(quats: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 3 3"]:
    """Rotation matrices of quaternions wxyz of any length."""
    lengths = np.linalg.norm(quats, axis=1, keepdims=True)
    w, x, y, z = (quats / np.maximum(lengths, 1e-12)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows, dtype=np.float32).transpose(2, 0, 1)
