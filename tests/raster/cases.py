"""Clouds and cameras that every renderer must draw alike: the ordinary and the awkward ones.

All are seeded and small (at most 64x48 pixels and 300 Gaussians), so the dense reference draws any of
them in well under a second. The seeds are chosen such that no pixel of any case is ambiguous (see
``ambiguous_pixels``), so images and gradients may be compared whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from splatopt.core.camera import Camera
from splatopt.raster.losses import L1Ssim, Loss
from splatopt.raster.problem import ViewProblem
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

CloudBuilder = Callable[[torch.Generator], GaussianCloud]


@dataclass(frozen=True)
class RenderCase:
    """A cloud, a camera and options; ``cloud()`` is float64 and exactly representable in float32."""

    name: str
    builder: CloudBuilder
    camera: Camera
    options: RenderOptions = RenderOptions()  # noqa: RUF009 - frozen
    seed: int = 0

    def cloud(self) -> GaussianCloud:
        """Build the cloud: the same on each call."""
        cloud = self.builder(torch.Generator().manual_seed(self.seed))
        return cloud.to(torch.float32).to(torch.float64)

    def target(self) -> torch.Tensor:
        """Return a photograph to compare with, (H, W, 3), uint8: the same on each call."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        size = (self.camera.height, self.camera.width, 3)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    def problem(self, loss: Loss | None = None, weights: torch.Tensor | None = None) -> ViewProblem:
        """Return the view to be explained, by L1 and SSIM where no loss is given."""
        return ViewProblem(self.camera, self.target(), self.options, loss or L1Ssim(), weights)


def look_from(position: tuple[float, float, float], turn: float = 0.2, tilt: float = -0.1) -> torch.Tensor:
    """Return the pose of a camera at ``position`` that looks along z, turned about y and x by radians."""
    cos_a, sin_a, cos_b, sin_b = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
    about_y = torch.tensor([[cos_a, 0, sin_a], [0, 1, 0], [-sin_a, 0, cos_a]], dtype=torch.float64)
    about_x = torch.tensor([[1, 0, 0], [0, cos_b, -sin_b], [0, sin_b, cos_b]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = about_x @ about_y
    pose[:3, 3] = -pose[:3, :3] @ torch.tensor(position, dtype=torch.float64)
    return pose


def make_camera(width: int, height: int, focal: float = 1.0, rotated: bool = True) -> Camera:
    """Return a camera 4 units before the origin; ``focal`` in image widths, principal point off centre."""
    pose = look_from((0.7, -0.3, -4.0)) if rotated else look_from((0.0, 0.0, -4.0), 0.0, 0.0)
    return Camera(
        world_to_camera=pose,
        fx=focal * width,
        fy=1.1 * focal * width,
        cx=0.5 * width + 0.3,
        cy=0.5 * height - 0.7,
        width=width,
        height=height,
        name=f"{width}x{height}",
    )


def random_cloud(
    generator: torch.Generator, count: int = 120, sh_degree: int = 3, scale: float = 0.12
) -> GaussianCloud:
    """Return Gaussians about the origin with mild anisotropy and colours away from the clamp at 0."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    coefficients = (sh_degree + 1) ** 2 - 1
    return GaussianCloud(
        means=normal(count, 3) * torch.tensor([1.2, 0.9, 0.8], dtype=torch.float64),
        log_scales=math.log(scale) + 0.5 * normal(count, 3),
        quats=normal(count, 4),
        logit_opacities=1.5 * normal(count),
        sh_dc=0.6 * normal(count, 3).clamp(-1, 2) + 0.4,
        sh_rest=0.1 * normal(count, coefficients, 3),
    )


def _edited(generator: torch.Generator, count: int, **changes: Callable[[torch.Tensor], torch.Tensor]) -> GaussianCloud:
    """Return a random cloud with some of its tensors passed through functions."""
    cloud = random_cloud(generator, count)
    return replace(cloud, **{name: change(getattr(cloud, name)) for name, change in changes.items()})


def needles(generator: torch.Generator) -> GaussianCloud:
    """Ratios of the longest to the shortest axis between 1e3 and 1e5."""
    ratio = torch.tensor([-0.5, -8.0, -12.0], dtype=torch.float64)
    return _edited(generator, 60, log_scales=lambda s: ratio + 0.5 * (s - math.log(0.12)))


def blades(generator: torch.Generator) -> GaussianCloud:
    """One axis 1e4 times thinner than the others, which differ mildly."""
    ratio = torch.tensor([-1.0, -1.5, -10.0], dtype=torch.float64)
    return _edited(generator, 60, log_scales=lambda s: ratio + 0.5 * (s - math.log(0.12)))


def giants(generator: torch.Generator) -> GaussianCloud:
    """Splats that cover the whole image, among ordinary ones."""
    return _edited(
        generator,
        40,
        log_scales=lambda s: torch.cat([s[:20] + 3.5, s[20:]]),
        logit_opacities=lambda o: torch.cat([o[:20] - 2, o[20:]]),
    )


def extreme_opacities(generator: torch.Generator) -> GaussianCloud:
    """Opacities of 6e-6 and 1 - 6e-6, and ordinary ones between."""
    twelve = torch.tensor([-12.0, 12.0, 0.0, 12.0], dtype=torch.float64).repeat(20)
    return _edited(generator, 80, log_scales=lambda s: s + 0.8, logit_opacities=lambda o: twelve + 0.01 * o)


def opaque_giants(generator: torch.Generator) -> GaussianCloud:
    """Large and opaque: α reaches its clamp and rays end after few of them."""
    return _edited(generator, 30, log_scales=lambda s: s + 2, logit_opacities=lambda o: 12 + 0.1 * o)


def behind(generator: torch.Generator) -> GaussianCloud:
    """All behind the camera: nothing is drawn."""
    back = torch.tensor([0.0, 0.0, -12.0], dtype=torch.float64)
    return _edited(generator, 30, means=lambda m: m + back)


def dark(generator: torch.Generator) -> GaussianCloud:
    """Colours of which half lie below the clamp at 0."""
    return _edited(generator, 100, sh_dc=lambda c: 1.5 * (c - 0.4) - 1.7, sh_rest=lambda c: 3 * c)


def all_around(generator: torch.Generator) -> GaussianCloud:
    """Behind the camera, beside it, far outside the frustum, and before it."""
    spread = torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64)
    return _edited(generator, 200, means=lambda m: m * spread, log_scales=lambda s: s + 1)


def near_plane(generator: torch.Generator) -> GaussianCloud:
    """Centres within 0.3 of the near plane of a camera at (0, 0, -4), on either side of it."""

    def squeeze(means: torch.Tensor) -> torch.Tensor:
        depth = -4 + 0.01 + 0.15 * means[:, 2:]
        return torch.cat([0.1 * means[:, :2], depth], dim=1)

    return _edited(generator, 60, means=squeeze, log_scales=lambda s: s - 1, logit_opacities=lambda o: o - 2)


def one_corner(generator: torch.Generator) -> GaussianCloud:
    """All in one corner, so that most tiles are empty."""
    corner = torch.tensor([-1.4, -1.0, 0.0], dtype=torch.float64)
    return _edited(generator, 40, means=lambda m: 0.15 * m + corner, log_scales=lambda s: s - 1)


def stack(generator: torch.Generator) -> GaussianCloud:
    """Hundreds behind one another, so that rays end early, at differing depths."""

    def line(means: torch.Tensor) -> torch.Tensor:
        depth = torch.linspace(-2, 6, means.shape[0], dtype=means.dtype)[:, None]
        return torch.cat([0.25 * means[:, :2], depth + 0.005 * means[:, 2:]], dim=1)

    return _edited(generator, 300, means=line, log_scales=lambda s: s + 0.8, logit_opacities=lambda o: 0.3 * o - 1)


def quaternion_lengths(generator: torch.Generator) -> GaussianCloud:
    """Quaternions of lengths 0.1 to 10."""

    def stretch(quats: torch.Tensor) -> torch.Tensor:
        length = torch.logspace(-1, 1, quats.shape[0], dtype=quats.dtype)[:, None]
        return quats / quats.norm(dim=1, keepdim=True) * length

    return _edited(generator, 80, quats=stretch, log_scales=lambda s: s * torch.tensor([1.0, 1.4, 0.8]))


def tiny(generator: torch.Generator) -> GaussianCloud:
    """Far smaller than a pixel: the low-pass alone shapes them."""
    return _edited(generator, 200, log_scales=lambda s: s - 2.5, logit_opacities=lambda o: o + 3)


def of_degree(degree: int, count: int = 100) -> CloudBuilder:
    """Return a builder of random clouds stored at ``degree``."""
    return lambda generator: random_cloud(generator, count, degree)


def _cases() -> tuple[RenderCase, ...]:
    wide, odd, mild = make_camera(64, 48), make_camera(37, 23), make_camera(48, 32)
    straight = make_camera(48, 32, rotated=False)
    grey = RenderOptions(background=(0.2, 0.5, 0.9))
    antialiased = RenderOptions(background=(1.0, 1.0, 1.0), footprint=Footprint.ANTIALIASED)
    degrees = [RenderCase(f"degree_{k}", of_degree(k), odd, grey, seed=(110, 11, 112, 13)[k]) for k in range(4)]
    lower = [
        RenderCase(f"degree_3_at_{k}", of_degree(3), odd, replace(grey, sh_degree=k), seed=(20, 21, 122, 23)[k])
        for k in range(4)
    ]
    return (
        RenderCase("ordinary", of_degree(3, 250), wide, grey, seed=1101),
        RenderCase("ordinary_black", of_degree(3, 150), odd, seed=102),
        RenderCase("ordinary_antialiased", of_degree(3, 150), wide, antialiased, seed=103),
        RenderCase("needles", needles, mild, grey, seed=4),
        RenderCase("needles_antialiased", needles, mild, antialiased, seed=5),
        RenderCase("blades_antialiased", blades, mild, antialiased, seed=142),
        RenderCase("dark", dark, odd, grey, seed=43),
        RenderCase("giants", giants, wide, grey, seed=6),
        RenderCase("extreme_opacities", extreme_opacities, odd, grey, seed=7),
        RenderCase("opaque_giants", opaque_giants, odd, grey, seed=344),
        RenderCase("behind", behind, odd, grey, seed=45),
        RenderCase("all_around", all_around, wide, grey, seed=108),
        RenderCase("all_around_wide_angle", all_around, make_camera(64, 48, focal=0.3), grey, seed=109),
        RenderCase("near_plane", near_plane, straight, grey, seed=30),
        RenderCase("one_corner", one_corner, wide, grey, seed=31),
        RenderCase("stack", stack, odd, grey, seed=32),
        RenderCase("quaternion_lengths", quaternion_lengths, odd, grey, seed=33),
        RenderCase("tiny", tiny, wide, grey, seed=34),
        RenderCase("tiny_antialiased", tiny, wide, antialiased, seed=35),
        RenderCase("one_pixel", of_degree(3, 50), make_camera(1, 1), grey, seed=36),
        RenderCase("one_row", of_degree(2, 80), make_camera(61, 1, focal=0.6), grey, seed=37),
        RenderCase("one_column", of_degree(1, 80), make_camera(1, 47, focal=20.0), grey, seed=38),
        RenderCase("zero_gaussians", of_degree(3, 0), odd, grey, seed=39),
        RenderCase("one_gaussian", of_degree(3, 1), odd, grey, seed=40),
        RenderCase("seventeen", of_degree(3, 60), make_camera(17, 33), grey, seed=41),
        *degrees,
        *lower,
    )


RENDER_CASES = _cases()
"""All cases; parametrize with ``ids=lambda case: case.name``."""


def find_case(name: str) -> RenderCase:
    """Return the case called ``name``."""
    return next(case for case in RENDER_CASES if case.name == name)
