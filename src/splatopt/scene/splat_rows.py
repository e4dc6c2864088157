"""The ``.splat`` of web viewers: rows of 32 bytes without a header, seen alike from all sides.

A row is the centre and the three standard deviations as float32, RGB and opacity as bytes, and a quaternion wxyz as
bytes, (q + 1)·128; colour is SH_C0·sh_dc + ½, cut to [0, 1]. Source: https://github.com/antimatter15/splat.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from splatopt.core.constants import SH_C0
from splatopt.data.packed_scenes import SPLAT_ROW
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import checked_cloud, unit_quaternions, warn_of_ends, write_whole

_MIN_SIZE, _MAX_SIZE = (float(getattr(np.finfo(np.float32), end)) for end in ("tiny", "max"))
_RANGES = {"sh_dc": (-0.5 / SH_C0, 0.5 / SH_C0, "colours")}

_OPACITY_MARGIN = 0.25 / 255
"""The bytes 0 and 255 stand for opacities within half a step of 0 and 1; this far from the end is taken."""


def save_splat(cloud: GaussianCloud, path: Path, warnings: list[str]) -> None:
    """Write a cloud's rows, the largest and most opaque first, as viewers that show a file while it loads want them.

    Args:
        cloud: Its degrees above 0 are left out.
        path: The file.
        warnings: Gets a sentence for what the format cannot hold.
    """
    if bool((cloud.sh_rest != 0).any()):
        warnings.append(
            f".splat holds no colours that depend on the view: those of degree {cloud.sh_degree} are left out"
        )
    warn_of_ends(cloud, _RANGES, ".splat", warnings)
    rows = {name: tensor.detach().cpu().double() for name, tensor in cloud.tensors.items()}
    opacities = rows["logit_opacities"].sigmoid()
    order = (opacities.log() + rows["log_scales"].sum(dim=1)).argsort(descending=True, stable=True)
    quats = unit_quaternions(rows["quats"])
    table = np.empty(len(cloud), SPLAT_ROW)
    table["center"] = rows["means"][order].numpy()
    table["size"] = rows["log_scales"][order].exp().clamp(_MIN_SIZE, _MAX_SIZE).numpy()
    colors = torch.cat([SH_C0 * rows["sh_dc"] + 0.5, opacities[:, None]], dim=1)
    table["color"] = _bytes(colors[order] * 255)
    table["quat"] = _bytes(quats[order] * 128 + 128)
    write_whole(path, lambda stream: stream.write(table.tobytes()))


def load_splat(path: Path, warnings: list[str] | None = None) -> GaussianCloud:
    """Read a ``.splat`` file, at degree 0; errors and warnings as of :func:`~splatopt.scene.ply.load_ply`."""
    table = np.fromfile(path, SPLAT_ROW)
    colors = table["color"].astype(np.float32) / 255
    opacities = colors[:, 3].clip(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales = np.log(table["size"])
    columns = {
        "means": table["center"].copy(),
        "log_scales": log_scales,
        "quats": (table["quat"].astype(np.float32) - 128) / 128,
        "logit_opacities": np.log(opacities / (1 - opacities)),
        "sh_dc": (colors[:, :3] - 0.5) / np.float32(SH_C0),
        "sh_rest": np.zeros((len(table), 0, 3), np.float32),
    }
    return checked_cloud(path, columns, warnings)


def _bytes(values: torch.Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
