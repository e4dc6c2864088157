"""Lenses: the camera models that captures name, and what undistorts them into pinholes."""

from __future__ import annotations

import functools
import math
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pycolmap

from splatopt.core.checks import InputError, nearest_names


def _keep_termination() -> None:
    """Have SIGTERM do what it did before pycolmap was imported, which prints a stack trace and may wait for ever."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


_keep_termination()

MAX_SIDE = 100_000
"""Longest image side that is believed, pixels; anything longer is a damaged file."""

_PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")
_PANORAMAS = ("EQUIRECTANGULAR",)


@dataclass(frozen=True)
class LensModel:
    """A camera model by COLMAP's name.

    Attributes:
        name: COLMAP's name, for example ``OPENCV``.
        number: COLMAP's number of it in binary files.
        parameter_count: Numbers that describe one lens.
        focal_indices: Which of them are focal lengths.
    """

    name: str
    number: int
    parameter_count: int
    focal_indices: tuple[int, ...]


@functools.cache
def lens_models() -> Mapping[str, LensModel]:
    """Return the camera models that can be read, by name."""
    models = {}
    for name, member in pycolmap.CameraModelId.__members__.items():
        if member.value >= 0:
            example = pycolmap.Camera.create_from_model_name(1, name, 1.0, 2, 2)
            focal = tuple(int(index) for index in example.focal_length_idxs())
            models[name] = LensModel(name, int(member.value), len(example.params), focal)
    return models


def lens_model(key: str | int, where: str) -> LensModel:
    """Return the camera model of a name (text files) or of a number (binary files).

    Args:
        key: COLMAP's name or number.
        where: The file, for the message.

    Raises:
        InputError: No such model is known.
    """
    for model in lens_models().values():
        if key in (model.name, model.number):
            return model
    if isinstance(key, str):
        raise InputError(f"{where}: no camera model is named {key!r}; {nearest_names(key, lens_models())}")
    raise InputError(
        f"{where}: camera model number {key} is unknown (known: 0 to {max(m.number for m in lens_models().values())}); "
        "the file is damaged or comes from a newer COLMAP, export it as text or undistort it there"
    )


@dataclass(frozen=True)
class Pinhole:
    """What a lens becomes once undistorted: focal lengths, principal point and size, all in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int


@dataclass(frozen=True)
class Lens:
    """Intrinsics of an image as it lies on disk, distortion included.

    Attributes:
        model: COLMAP's name of the camera model.
        width: Image width, pixels.
        height: Image height, pixels.
        parameters: The model's parameters in COLMAP's order, focal lengths and principal point in pixels.
        where: What the lens was read from, for messages.
    """

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]
    where: str = field(default="lens", compare=False)

    def __post_init__(self) -> None:
        """Refuse what no image can have.

        Raises:
            InputError: Unknown model, wrong number of parameters, impossible size, NaN, or a panorama.
        """
        model = lens_model(self.model, self.where)
        if self.model in _PANORAMAS:
            raise InputError(
                f"{self.where}: camera model {self.model} is a panorama that no pinhole can show; "
                "cut it into perspective views first"
            )
        if len(self.parameters) != model.parameter_count:
            raise InputError(
                f"{self.where}: camera model {self.model} has {model.parameter_count} parameters, "
                f"got {len(self.parameters)}; the file is damaged"
            )
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise InputError(
                f"{self.where}: the image size must lie between 1x1 and {MAX_SIDE}x{MAX_SIDE}, "
                f"got {self.width}x{self.height}; the file is damaged"
            )
        if not all(math.isfinite(value) for value in self.parameters):
            raise InputError(f"{self.where}: a camera parameter is NaN or infinite; mend or remove this camera")
        focal = [self.parameters[index] for index in model.focal_indices]
        if min(focal) <= 0:
            raise InputError(f"{self.where}: focal lengths must be positive, got {min(focal)}; mend this camera")

    @property
    def is_pinhole(self) -> bool:
        """Whether images of this lens are used as they are, without being resampled."""
        return self.model in _PINHOLES

    def resized(self, width: int, height: int) -> Lens:
        """Return the lens of the same image resampled to ``width`` x ``height`` pixels."""
        if (width, height) == (self.width, self.height):
            return self
        camera = self._camera()
        camera.rescale(width, height)
        return Lens(self.model, width, height, tuple(float(value) for value in camera.params), self.where)

    def pinhole(self) -> Pinhole:
        """Return the pinhole of the undistorted image: its largest part without blank pixels.

        Raises:
            InputError: The distortion is so strong that no pinhole is left.
        """
        camera = self._camera()
        if not self.is_pinhole:
            try:
                camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    f"{self.where}: this {self.model} camera cannot be undistorted; mend its parameters"
                ) from error
        return Pinhole(
            float(camera.focal_length_x),
            float(camera.focal_length_y),
            float(camera.principal_point_x),
            float(camera.principal_point_y),
            int(camera.width),
            int(camera.height),
        )

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Return ``pixels``, (height, width, 3) uint8, as :meth:`pinhole` sees them (bilinear)."""
        if self.is_pinhole:
            return pixels
        bitmap, _ = pycolmap.undistort_image(
            pycolmap.UndistortCameraOptions(), pycolmap.Bitmap.from_array(pixels), self._camera()
        )
        return bitmap.to_array()

    def _camera(self) -> pycolmap.Camera:
        return pycolmap.Camera(
            model=self.model, width=self.width, height=self.height, params=np.array(self.parameters, dtype=np.float64)
        )
