"""What is left out of a scene that is written for others, and where it is put."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_positive, quoted
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.similarity import Similarity


@dataclass(frozen=True)
class TrimOptions:
    """What is left out of a scene, and where it is put."""

    crop: str | None = None
    """Keep Gaussians whose centre lies in a box, given by two corners as X0,Y0,Z0,X1,Y1,Z1 in the written scene before
    --center. Unit: units of the written scene."""

    max_size: float | None = None
    """Leave out Gaussians whose largest standard deviation is above this, such as the huge ones of a far sky, by which
    viewers frame a scene too wide. Unit: units of the written scene."""

    center: bool = False
    """Put the median of the centres at the origin, where viewers look."""

    sh_degree: int | None = None
    """Write view-dependent colours up to this degree only, 0 to 3; as they are when None."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_size is not None:
            check_positive("--max-size", self.max_size)
        if self.sh_degree is not None and self.sh_degree not in (0, 1, 2, 3):
            raise InputError(f"--sh-degree must be 0, 1, 2 or 3, got {self.sh_degree}")
        _corners(self.crop)


def trim(cloud: GaussianCloud, way: Similarity, options: TrimOptions) -> tuple[GaussianCloud, Similarity, list[str]]:
    """Leave out of a cloud what is not to be written.

    Args:
        cloud: In any frame.
        way: From there to where it is written, before it is centred.
        options: What is left out.

    Returns:
        The cloud in its own frame still, the whole way to where it is written, and a sentence for each thing that is
        left out.

    Raises:
        InputError: Nothing is left.
    """
    moved, said = way.cloud(cloud), []
    keep = torch.ones(len(cloud), dtype=torch.bool, device=cloud.means.device)
    corners = _corners(options.crop)
    if corners is not None:
        inside = ((moved.means >= corners[0].to(moved.means)) & (moved.means <= corners[1].to(moved.means))).all(dim=1)
        said.append(f"{int((~inside).sum()):,} of {len(cloud):,} Gaussians lie outside the box of --crop")
        keep &= inside
    if options.max_size is not None:
        small = moved.log_scales.exp().amax(dim=1) <= options.max_size
        said.append(f"{int((keep & ~small).sum()):,} are larger than --max-size {options.max_size:g}")
        keep &= small
    if not keep.any():
        raise InputError(f"no Gaussian is left: {'; '.join(said)}; give a larger box or size")
    if options.center:
        way = way.then(Similarity.shifting(-moved.means[keep].cpu().double().median(dim=0).values))
    if options.sh_degree is not None and options.sh_degree < cloud.sh_degree:
        cloud = cloud.with_sh_degree(options.sh_degree)
    return cloud.map(lambda tensor: tensor[keep]), way, said


def _corners(crop: str | None) -> Tensor | None:
    """Return the box's lower and upper corner, (2, 3)."""
    if crop is None:
        return None
    try:
        corners = torch.tensor([float(word) for word in crop.split(",")], dtype=torch.float64).view(2, 3)
    except (ValueError, RuntimeError):
        raise InputError(f"--crop takes six numbers as X0,Y0,Z0,X1,Y1,Z1, got {quoted(crop)}") from None
    if not (corners[0] < corners[1]).all():
        raise InputError(f"--crop takes the lower corner of a box and then the upper one, got {quoted(crop)}")
    return corners
