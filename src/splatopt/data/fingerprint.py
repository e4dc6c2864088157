"""Fingerprints of what a run is trained on: short texts that tell another capture, image or mesh from the same one.

They hold no path, so a folder may be moved, and they are the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from splatopt.core.frame import FRAME_KEY
from splatopt.core.reading import read_bounded
from splatopt.data.capture import Capture
from splatopt.data.image_store import ImageSource
from splatopt.data.mesh import Mesh

_PIXEL_GRID, _POSE_GRID = 1e-5, 1e-8
_MAX_MASK_BYTES = 1 << 30


def fingerprint_capture(capture: Capture) -> dict[str, str]:
    """Return the fingerprint of a capture as it is trained on: views, cameras, masks, split, number of points, frame.

    Cameras are those of the capture's own frame. Photographs count by their size alone: reading the pixels of all would
    take long.
    """
    cameras, split = (capture.own or capture).cameras, capture.split
    poses = torch.stack([camera.world_to_camera.double() for camera in cameras]).numpy()
    intrinsics = [(one.width, one.height, one.fx, one.fy, one.cx, one.cy) for one in cameras]
    return {
        "kind": "a capture",
        "views": _views(Counter((camera.width, camera.height) for camera in cameras)),
        "names": _digest(json.dumps([camera.name for camera in cameras]).encode()),
        "intrinsics": _digest(_cells(np.array(intrinsics), _PIXEL_GRID)),
        "poses": _pose_digest(poses),
        **_masks(capture.images.sources),
        "split": f"{split.name} ({len(split.train)} training and {len(split.test)} test views)",
        "held out": _digest(json.dumps(split.test).encode()),
        "points": str(0 if capture.points is None else len(capture.points)),
        FRAME_KEY: capture.frame.text,
    }


def _masks(sources: Sequence[ImageSource]) -> dict[str, str]:
    """What becomes of how many masks, and the digest of their files."""
    masked = [one for one in sources if one.is_masked or (one.mask and one.shows_background)]
    if not masked:
        return {"masks": "none", "mask files": ""}
    content = hashlib.sha256()
    for one in masked:
        if one.mask is not None:
            content.update(hashlib.sha256(read_bounded(one.mask, _MAX_MASK_BYTES)).digest())
    what = "ignored" if masked[0].is_masked else "laid over the background"
    return {"masks": f"{len(masked)} and {what}", "mask files": content.hexdigest()}


def fingerprint_image(image: Tensor) -> dict[str, str]:
    """Return the fingerprint of an image, (H, W, C) in [0, 1], as it is fitted: its size and its 8-bit values."""
    height, width = image.shape[:2]
    levels = (image * 255).round().to(torch.uint8).contiguous().numpy()
    return {"kind": "an image", "size": f"{width}x{height}", "pixels": _digest(levels.tobytes())}


def fingerprint_mesh(mesh: Mesh) -> dict[str, str]:
    """Return the fingerprint of a mesh: its vertices, as they lie in the file to about 15 digits, and its faces."""
    numbers = (mesh.vertices, mesh.center, torch.tensor([mesh.scale]))
    floats = b"".join(value.double().numpy().astype("<f8").tobytes() for value in numbers)
    return {
        "kind": "a mesh",
        "mesh": f"{len(mesh.vertices)} vertices and {len(mesh.faces)} faces",
        "surface": _digest(floats + mesh.faces.numpy().astype("<i8").tobytes()),
    }


def _views(sizes: Counter[tuple[int, int]]) -> str:
    """Number and sizes of views in words."""
    count = sum(sizes.values())
    small, large = (f"{width}x{height}" for width, height in (min(sizes), max(sizes)))
    of = small if len(sizes) == 1 else f"{len(sizes)} sizes from {small} to {large}"
    return f"{count} view{'' if count == 1 else 's'} of {of}"


def _pose_digest(poses: np.ndarray) -> str:
    """The digest of world-to-camera matrices, (n, 4, 4); translations are measured by the largest of them."""
    # Twos that no capture has: a largest entry of just 4 units must not lie between two exponents either.
    exponent = math.frexp(1.37 * float(np.abs(poses[:, :3, 3]).max()))[1]
    scaled = poses[:, :3, :].copy()
    scaled[:, :, 3] = np.ldexp(scaled[:, :, 3], -exponent)
    return _digest(str(exponent).encode() + _cells(scaled, _POSE_GRID))


def _cells(values: np.ndarray, grid: float) -> bytes:
    """The numbers of the cells in which ``values`` lie, as little-endian float64.

    Cameras come through matrix products and decompositions, whose last bits are not the same on all processors. The
    cells begin three tenths of one below the round numbers, so that these, which captures are full of, lie well
    inside of one.
    """
    return (np.floor(values.astype(np.float64) / grid + 0.3) + 0.0).astype("<f8").tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
