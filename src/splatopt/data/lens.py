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

from splatopt.core.checks import InputError, nearest_names, quoted


def _keep_termination() -> None:
    """Have SIGTERM do what it did before pycolmap was imported, which prints a stack trace and may wait for ever."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


_keep_termination()

MAX_SIDE = 100_000
"""Longest image side that is believed, pixels; anything longer is a damaged file."""

MIN_FOCAL, MAX_FOCAL = 1e-2, 1e4
"""Focal lengths that are believed, in longer sides of the image: fields of view from 179 to 0.006 degrees."""

MAX_PRINCIPAL_POINT = 10.0
"""How far outside the image a principal point is believed, in longer sides; that of a cropped image lies outside."""

_USUAL_FOCAL = (0.1, 100.0)
_USUAL_PIXEL = 2.0  # fx/fy or its inverse; anamorphic lenses reach 2
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
        center_indices: Which of them are the principal point, x and y.
    """

    name: str
    number: int
    parameter_count: int
    focal_indices: tuple[int, ...]
    center_indices: tuple[int, ...]


@functools.cache
def lens_models() -> Mapping[str, LensModel]:
    """Return the camera models that can be read, by name."""
    models = {}
    for name, member in pycolmap.CameraModelId.__members__.items():
        if member.value >= 0:
            example = pycolmap.Camera.create_from_model_name(1, name, 1.0, 2, 2)
            focal = tuple(int(index) for index in example.focal_length_idxs())
            center = tuple(int(index) for index in example.principal_point_idxs())
            models[name] = LensModel(name, int(member.value), len(example.params), focal, center)
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
        raise InputError(f"{where}: no camera model is named {quoted(key)}; {nearest_names(key, lens_models())}")
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
            InputError: Unknown model, wrong number of parameters, impossible size, a panorama, or numbers that no
                lens can have.
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
                f"got {quoted(f'{self.width}x{self.height}')}; the file is damaged"
            )
        if not all(math.isfinite(value) for value in self.parameters):
            raise InputError(f"{self.where}: a camera parameter is NaN or infinite; mend or remove this camera")
        self._check_focal_lengths()
        across, down = self._beyond_the_image()
        if max(across, down) > MAX_PRINCIPAL_POINT * self.longer_side:
            raise InputError(
                f"{self.where}: the principal point must lie in the image or near it, got {self.principal_point} for "
                f"{self.width}x{self.height} pixels; mend this camera"
            )
        if not self.is_pinhole:
            self._check_distortion()

    def _check_focal_lengths(self) -> None:
        focal = self.focal_lengths
        if min(focal) <= 0:
            raise InputError(f"{self.where}: focal lengths must be positive, got {min(focal)}; mend this camera")
        minimum, maximum = MIN_FOCAL * self.longer_side, MAX_FOCAL * self.longer_side
        for value in focal:
            if not minimum <= value <= maximum:
                raise InputError(
                    f"{self.where}: no lens has a focal length of {value} pixels for an image of "
                    f"{self.width}x{self.height}; expected {minimum:g} to {maximum:g}, mend this camera"
                )

    def _check_distortion(self) -> None:
        """Refuse a distortion that does not take pixels around the image's middle to rays and back."""
        across, down = (np.arange(1, 4) / 4 * side for side in (self.width, self.height))
        pixels = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        camera = self._camera()
        rays = np.asarray(camera.cam_from_img(pixels), dtype=np.float64)
        if np.isfinite(rays).all():
            points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
            back = np.asarray(camera.img_from_cam(points), dtype=np.float64)
            if np.isfinite(back).all() and np.abs(back - pixels).max() < 1:
                return
        raise InputError(
            f"{self.where}: no lens has this {self.model} distortion, which leaves nothing of the image's middle; "
            "mend this camera"
        )

    @property
    def longer_side(self) -> int:
        """Pixels."""
        return max(self.width, self.height)

    @property
    def focal_lengths(self) -> tuple[float, ...]:
        """One or two, pixels."""
        return tuple(self.parameters[index] for index in lens_model(self.model, self.where).focal_indices)

    @property
    def principal_point(self) -> tuple[float, ...]:
        """Pixels from the left and from the upper edge."""
        return tuple(self.parameters[index] for index in lens_model(self.model, self.where).center_indices)

    def _beyond_the_image(self) -> tuple[float, float]:
        """How far the principal point lies outside the image along x and y, pixels; 0 inside."""
        (x, y), (width, height) = self.principal_point, (self.width, self.height)
        return max(-x, x - width, 0.0), max(-y, y - height, 0.0)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What can be used but is seldom meant, one sentence each."""
        focal, side = self.focal_lengths, self.longer_side
        said = []
        if max(self._beyond_the_image()) > 0:
            said.append(
                f"{self.where}: the principal point {self.principal_point} lies outside the image of "
                f"{self.width}x{self.height} pixels, as only that of a cropped image does"
            )
        if not _USUAL_FOCAL[0] * side <= min(focal) <= max(focal) <= _USUAL_FOCAL[1] * side:
            said.append(f"{self.where}: the focal length {focal[0]:g} is unusual for {self.width}x{self.height} pixels")
        if max(focal) > _USUAL_PIXEL * min(focal):
            said.append(
                f"{self.where}: the focal lengths {focal[0]:g} and {focal[-1]:g} differ more than any lens's do"
            )
        return tuple(said)

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
            InputError: The distortion is so strong that hardly any image is left.
        """
        camera = self._camera()
        if not self.is_pinhole:
            options = pycolmap.UndistortCameraOptions()
            try:
                camera = pycolmap.undistort_camera(options, camera)
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    f"{self.where}: this {self.model} camera cannot be undistorted; mend its parameters"
                ) from error
            if min(camera.width / self.width, camera.height / self.height) <= options.min_scale:
                raise InputError(
                    f"{self.where}: this {self.model} camera is so distorted that less than a fifth of its image is "
                    "left; mend its parameters"
                )
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
