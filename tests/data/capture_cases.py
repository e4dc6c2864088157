"""Small captures that the tests write themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

WIDTH, HEIGHT = 80, 60

LENSES: dict[str, list[float]] = {
    "SIMPLE_PINHOLE": [60, 41, 29],
    "PINHOLE": [60, 62, 41, 29],
    "SIMPLE_RADIAL": [60, 41, 29, 0.1],
    "RADIAL": [60, 41, 29, 0.1, -0.03],
    "OPENCV": [60, 62, 41, 29, 0.1, -0.03, 0.004, -0.003],
    "FULL_OPENCV": [60, 62, 41, 29, 0.1, -0.03, 0.004, -0.003, 0.01, 0.02, 0.01, 0.0],
    "SIMPLE_RADIAL_FISHEYE": [60, 41, 29, 0.05],
    "RADIAL_FISHEYE": [60, 41, 29, 0.05, -0.01],
    "OPENCV_FISHEYE": [60, 62, 41, 29, 0.05, -0.01, 0.002, 0.001],
    "FOV": [60, 62, 41, 29, 0.6],
    "THIN_PRISM_FISHEYE": [60, 62, 41, 29, 0.05, -0.01, 0.002, 0.001, 0.001, 0.0, 0.001, 0.001],
    "RAD_TAN_THIN_PRISM_FISHEYE": [60, 62, 41, 29, 0.02, 0.01, 0, 0, 0, 0, 0.001, 0.001, 0.001, 0, 0.001, 0],
    "SIMPLE_DIVISION": [60, 41, 29, -0.1],
    "DIVISION": [60, 62, 41, 29, -0.1],
    "SIMPLE_FISHEYE": [60, 41, 29],
    "FISHEYE": [60, 62, 41, 29],
    "EUCM": [60, 62, 41, 29, 0.4, 1.1],
}
"""Parameters of every camera model that a pinhole can be made of."""


def known_lenses() -> list[str]:
    """The models of ``LENSES`` that the installed pycolmap has."""
    return [name for name in LENSES if name in pycolmap.CameraModelId.__members__]


def lens(model: str = "PINHOLE", width: int = WIDTH, height: int = HEIGHT) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=width, height=height, params=np.array(LENSES[model], dtype=np.float64))


def picture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture, (height, width, 3) uint8."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(columns / 7 + seed), np.cos(rows / 5 + seed), np.sin((rows + columns) / 9)]
    return np.rint(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def blob(at: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A black picture with a red Gaussian spot (σ 2 pixels) at ``at``, pixel centres at +0.5."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    image = np.zeros((height, width, 3))
    image[..., 0] = 250 * np.exp(-((columns - at[0]) ** 2 + (rows - at[1]) ** 2) / 8)
    return np.rint(image).astype(np.uint8)


def centroid(image: np.ndarray) -> np.ndarray:
    """Where the red of ``image`` has its centre, pixel centres at +0.5."""
    red = image[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(red * columns).sum(), (red * rows).sum()]) / red.sum()


def pose(index: int) -> np.ndarray:
    """World to camera, (4, 4): cameras on an arc that look at the origin from 4 units away."""
    angle = 0.2 * index - 0.3
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [math.cos(angle), 0, math.sin(angle)],
        [0, 1, 0],
        [-math.sin(angle), 0, math.cos(angle)],
    ]
    matrix[:3, 3] = [0.1, -0.05, 4]
    return matrix


def reconstruction(cameras: list[pycolmap.Camera], views: int, points: int = 5) -> pycolmap.Reconstruction:
    """A model of ``views`` images ``image_000.png``, …, whose cameras are taken in turn."""
    model = pycolmap.Reconstruction()
    for number, camera in enumerate(cameras, start=1):
        camera.camera_id = number
        model.add_camera_with_trivial_rig(camera)
    for index in range(views):
        image = pycolmap.Image(
            name=f"image_{index:03d}.png",
            camera_id=1 + index % len(cameras),
            image_id=index + 1,
            points2D=[pycolmap.Point2D(np.array([1.0 + i, 2.0])) for i in range(index % 3)],
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose(index)[:3]))
    rng = np.random.default_rng(0)
    for _ in range(points):
        model.add_point3D(rng.normal(size=3), pycolmap.Track(), rng.integers(0, 256, 3, dtype=np.uint8))
    return model


def write_model(folder: Path, model: pycolmap.Reconstruction, *, binary: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (model.write_binary if binary else model.write_text)(str(folder))
    return folder


def write_images(folder: Path, model: pycolmap.Reconstruction) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        Image.fromarray(picture(camera.width, camera.height, image.image_id)).save(folder / image.name)


def write_colmap(
    path: Path, *, views: int = 9, cameras: list[pycolmap.Camera] | None = None, binary: bool = True, points: int = 5
) -> pycolmap.Reconstruction:
    """Write a whole capture with its model in ``sparse/0``."""
    model = reconstruction(cameras or [lens()], views, points)
    write_model(path / "sparse" / "0", model, binary=binary)
    write_images(path / "images", model)
    return model


def opengl_pose(index: int) -> np.ndarray:
    """Camera to world of :func:`pose` with OpenGL axes."""
    return np.linalg.inv(pose(index)) @ np.diag([1.0, -1, -1, 1])


def write_transforms(path: Path, content: dict, *, views: int = 9, name: str = "transforms.json") -> None:
    """Write a JSON file of frames and its images; ``content`` are the keys of the whole file."""
    path.mkdir(parents=True, exist_ok=True)
    frames = []
    for index in range(views):
        file = path / "images" / f"{index:04d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed=index)).save(file)
        frames.append({"file_path": f"images/{file.name}", "transform_matrix": opengl_pose(index).tolist()})
    (path / name).write_text(json.dumps({**content, "frames": frames}), encoding="utf-8")
