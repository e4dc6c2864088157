"""Captures in another world: other units, another place, turned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import torch
from scipy.spatial.transform import Rotation

from splatopt.data import Capture
from splatopt.data.source import Points

NOWHERE = (0.0, 0.0, 0.0)
UTM = (5e5, 4.6e6, 300.0)


def turned_by(axis: tuple[float, float, float], degrees: float) -> torch.Tensor:
    """The rotation about ``axis``, (3, 3) float64; half turns about the world's axes to the last bit."""
    vector = np.array(axis) / np.linalg.norm(axis)
    matrix = Rotation.from_rotvec(np.radians(degrees) * vector).as_matrix()
    return torch.from_numpy(np.where(np.abs(matrix - np.rint(matrix)) < 1e-12, np.rint(matrix), matrix))


def moved(
    capture: Capture, scale: float, shift: tuple[float, float, float] = NOWHERE, turn: torch.Tensor | None = None
) -> Capture:
    """The capture in a world that is ``scale`` times as large, turned, then shifted."""
    by = torch.tensor(shift, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64) if turn is None else turn
    cameras = []
    for camera in capture.cameras:
        pose = camera.world_to_camera.double().clone()
        pose[:3, :3] = pose[:3, :3] @ rotation.T
        pose[:3, 3] = scale * pose[:3, 3] - pose[:3, :3] @ by
        cameras.append(replace(camera, world_to_camera=pose))
    points = capture.points
    if points is not None:
        points = Points(scale * (points.positions @ rotation.T) + by, points.colors)
    return replace(capture, cameras=tuple(cameras), points=points)


def move_files(
    source: Path,
    folder: Path,
    scale: float,
    shift: tuple[float, float, float] = NOWHERE,
    turn: torch.Tensor | None = None,
) -> Path:
    """Write the COLMAP capture ``source`` in such a world to ``folder``."""
    shutil.copytree(source, folder)
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    rotation = np.eye(3) if turn is None else turn.numpy()
    model.transform(pycolmap.Sim3d(np.hstack([scale * rotation, np.array(shift)[:, None]])))
    model.write_text(str(folder / "sparse" / "0"))
    return folder
