"""The Gaussian cloud: what is optimised and what is rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import SH_REST_COUNTS, sh_degree_of, tensor_shapes


@dataclass
class GaussianCloud:
    """N anisotropic 3D Gaussians with view-dependent colour.

    Attributes:
        means: Centres, (N, 3), world units.
        log_scales: Natural logarithms of the standard deviations along the own axes, (N, 3).
        quats: Rotations as quaternions wxyz, not normalised, (N, 4).
        logit_opacities: Opacities before the sigmoid, (N,).
        sh_dc: Spherical-harmonics coefficient of degree 0 per colour channel, (N, 3).
        sh_rest: Coefficients of the degrees above, (N, K, 3), K = (degree+1)² - 1 in {0, 3, 8, 15}.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    logit_opacities: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    def __post_init__(self) -> None:
        """Check shapes and types; values are checked by :meth:`check_finite`."""
        n, k = self.means.shape[0], self.sh_rest.shape[1] if self.sh_rest.dim() == 3 else -1
        for name, shape in tensor_shapes(n, k).items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
            if tensor.dtype != self.means.dtype:
                raise ValueError(f"{name} is {tensor.dtype} but means are {self.means.dtype}; use one type")
        sh_degree_of(self.sh_rest)

    def __len__(self) -> int:
        """Number of Gaussians."""
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Highest spherical-harmonics degree that is stored, 0 to 3."""
        return sh_degree_of(self.sh_rest)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The six tensors by name, in the order of the class's documentation."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self, function) -> GaussianCloud:  # noqa: ANN001 - any Tensor -> Tensor
        """Return a cloud with ``function`` applied to each tensor."""
        return GaussianCloud(**{name: function(tensor) for name, tensor in self.tensors.items()})

    def to(self, *args: torch.dtype | torch.device | str) -> GaussianCloud:
        """Return the cloud in another type or on another device."""
        return self.map(lambda tensor: tensor.to(*args))

    def clone(self) -> GaussianCloud:
        """Return a copy that shares no memory, detached and contiguous."""
        return self.map(lambda tensor: tensor.detach().clone().contiguous())

    def in_local(self, frame: Frame) -> GaussianCloud:
        """Return the cloud, which is in a capture's own frame, in the one that the capture is trained in."""
        moved = {"means": frame.to_local(self.means), "log_scales": self.log_scales - math.log(frame.unit)}
        return self._moved(moved)

    def in_world(self, frame: Frame) -> GaussianCloud:
        """Return the cloud, which is in a capture's training frame, in the capture's own."""
        moved = {"means": frame.to_world(self.means), "log_scales": self.log_scales + math.log(frame.unit)}
        return self._moved(moved)

    def _moved(self, moved: dict[str, Tensor]) -> GaussianCloud:
        tensors = self.tensors
        return GaussianCloud(**{**tensors, **{name: value.to(tensors[name].dtype) for name, value in moved.items()}})

    def edit_rows(self, edit: SceneEdit) -> None:
        """Replace the rows by those that ``edit`` gathers and writes."""
        for name, tensor in self.tensors.items():
            setattr(self, name, edit.parameter(name, tensor))

    def with_sh_degree(self, degree: int) -> GaussianCloud:
        """Return the cloud stored at ``degree``: higher bands are dropped, missing ones are zero."""
        count = SH_REST_COUNTS[degree]
        rest = self.sh_rest[:, :count]
        if rest.shape[1] < count:
            rest = torch.cat([rest, rest.new_zeros(len(self), count - rest.shape[1], 3)], dim=1)
        return GaussianCloud(**{**self.tensors, "sh_rest": rest.contiguous()})

    def check_finite(self, where: str) -> None:
        """Raise InputError naming the tensor and the number of rows that hold a NaN or infinity."""
        for name, tensor in self.tensors.items():
            bad = ~torch.isfinite(tensor.reshape(len(self), -1)).all(dim=1) if tensor.numel() else torch.zeros(0)
            if bad.any():
                count = int(bad.sum())
                raise InputError(f"{where}: {name} holds NaN or infinite values in {count} of {len(self)} rows")
