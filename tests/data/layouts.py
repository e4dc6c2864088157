"""The same small capture in the layouts of transforms.json, Blender, LLFF, Polycam and Record3D."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

OPENGL = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class Example:
    """Poses, (N, 4, 4) world to camera with OpenCV's axes, and one pinhole with its principal point in the middle."""

    world_to_camera: np.ndarray
    width: int
    height: int
    focal: float
    test: tuple[int, ...]

    @property
    def camera_to_world(self) -> np.ndarray:
        """The poses with OpenGL's axes."""
        return np.linalg.inv(self.world_to_camera) @ OPENGL

    def photograph(self, index: int) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), (index * 20, 10, 200))


def photographs(
    example: Example, folder: Path, name: Callable[[int], str], indices: Iterable[int] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(example.world_to_camera)) if indices is None else indices:
        example.photograph(index).save(folder / name(index))


def frames(example: Example, folder: str, indices: Iterable[int]) -> list[dict]:
    return [
        {"file_path": f"{folder}/{index:03d}.png", "transform_matrix": example.camera_to_world[index].tolist()}
        for index in indices
    ]


def write_json(path: Path, example: Example, *, lists: bool = True, **keys: object) -> None:
    """A transforms.json with its own split, and ``keys`` besides."""
    photographs(example, path / "images", lambda index: f"{index:03d}.png")
    listed = frames(example, "images", range(len(example.world_to_camera)))
    content: dict = {"fl_x": example.focal, "w": example.width, "h": example.height, "frames": listed, **keys}
    if lists:
        content["test_filenames"] = [listed[index]["file_path"] for index in example.test]
    (path / "transforms.json").write_text(json.dumps(content))


def write_blender(path: Path, example: Example) -> None:
    train = [index for index in range(len(example.world_to_camera)) if index not in example.test]
    angle = 2 * np.arctan(example.width / (2 * example.focal))
    for part, indices in (("train", train), ("test", example.test)):
        photographs(example, path / part, lambda index: f"{index:03d}.png", indices)
        content = {"camera_angle_x": angle, "frames": frames(example, f"./{part}", indices)}
        (path / f"transforms_{part}.json").write_text(json.dumps(content))


def bounds_of(example: Example) -> np.ndarray:
    """What LLFF writes of COLMAP's poses: columns y, x and -z of the camera, its place, height, width and focal."""
    rows = []
    for camera_to_world in np.linalg.inv(example.world_to_camera):
        x, y, z, place = camera_to_world[:3].T
        size = [example.height, example.width, example.focal]
        rows.append([*np.stack([y, x, -z, place, size], axis=1).ravel(), 0.1, 100.0])
    return np.array(rows)


def write_llff(path: Path, example: Example) -> None:
    photographs(example, path / "images", lambda index: f"IMG_{index:03d}.JPG")
    np.save(path / "poses_bounds.npy", bounds_of(example))


def write_polycam(path: Path, example: Example, *, corrected: str = "corrected_") -> None:
    keyframes = path / "keyframes"
    photographs(example, keyframes / f"{corrected}images", lambda index: f"16{index:03d}.jpg")
    (keyframes / f"{corrected}cameras").mkdir()
    for index, pose in enumerate(example.camera_to_world):
        content = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        content |= {"fx": example.focal, "fy": example.focal, "width": example.width, "height": example.height}
        content |= {
            "cx": example.width / 2,
            "cy": example.height / 2,
            "blur_score": 3.0,
            "timestamp": 1,
            "neighbors": [],
        }
        (keyframes / f"{corrected}cameras" / f"16{index:03d}.json").write_text(json.dumps(content))


def write_record3d(
    path: Path, example: Example, *, name: str = "metadata", folder: str = "rgb", **keys: object
) -> None:
    photographs(example, path / folder, lambda index: f"{index}.jpg")
    turns = Rotation.from_matrix(example.camera_to_world[:, :3, :3]).as_quat()
    poses = np.concatenate([turns, example.camera_to_world[:, :3, 3]], axis=1)
    intrinsics = [example.focal, 0, 0, 0, example.focal, 0, example.width / 2, example.height / 2, 1]
    content = {"K": intrinsics, "w": example.width, "h": example.height, "fps": 60, "poses": poses.tolist(), **keys}
    (path / name).write_text(json.dumps(content))


def example(views: int = 9, width: int = 32, height: int = 24, focal: float = 40.0, seed: int = 0) -> Example:
    """Cameras of any turn, a few units around the origin."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3, :3] = Rotation.random(views, random_state=seed).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(views, 3))
    return Example(poses, width, height, focal, tuple(range(0, views, 8)))
