"""Statistics of rows by plain loops over pixels and depth-sorted Gaussians, in float64, from their definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from raster.cases import RenderCase, find_case, make_camera, random_cloud
from splatopt.core.row_statistics import ErrorMap, GradientStatistics, RowStatistics, absolute_error
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference_projection import project_reference
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

WALL_CAMERA = make_camera(24, 20)


def wall(generator: torch.Generator) -> GaussianCloud:
    """Behind some thin ones an opaque giant, whose α is clamped all over the image, and behind it what still shows."""
    cloud = random_cloud(generator, 24, sh_degree=1)
    cloud.means[0] = torch.tensor([0.0, 0.0, -0.2])
    cloud.log_scales[0], cloud.logit_opacities[0] = 2.5, 12.0
    cloud.logit_opacities[1:] -= 2
    return cloud


@dataclass(frozen=True)
class StatisticsCase:
    """A case of the renderers' tests cut down to a few tiles, a loss, and whether pixels have weights."""

    name: str
    count: int = 24
    size: tuple[int, int] = (24, 20)
    loss: Loss = L1Ssim()  # noqa: RUF009 - frozen
    masked: bool = False
    footprint: Footprint = Footprint.CLASSIC

    @property
    def title(self) -> str:
        """What pytest calls it."""
        return f"{self.name}-{type(self.loss).__name__}{'-masked' * self.masked}-{self.footprint.value}"

    @property
    def case(self) -> RenderCase:
        """The case that it is cut from, small."""
        options = RenderOptions(background=(0.2, 0.5, 0.9), footprint=self.footprint)
        found = RenderCase("wall", wall, WALL_CAMERA, seed=5) if self.name == "wall" else find_case(self.name)
        return replace(found, camera=make_camera(*self.size), options=options)

    def cloud(self) -> GaussianCloud:
        """The first Gaussians, float64, exactly representable in float32."""
        return self.case.cloud().map(lambda tensor: tensor[: self.count].clone())

    def problem(self) -> ViewProblem:
        """The view; where it is masked, a third of the pixels count nothing and the others 0 to 1."""
        if not self.masked:
            return self.case.problem(self.loss)
        random = torch.rand(2, self.size[1], self.size[0], generator=torch.Generator().manual_seed(9))
        return self.case.problem(self.loss, random[0] * (random[1] > 1 / 3))


CASES = (
    StatisticsCase("degree_3"),
    StatisticsCase("degree_0", loss=SquaredError(), masked=True),
    StatisticsCase("opaque_giants"),
    StatisticsCase("wall"),
    StatisticsCase("wall", loss=SquaredError(), masked=True),
    StatisticsCase("extreme_opacities", masked=True),
    StatisticsCase("all_around", count=60),
    StatisticsCase("needles", footprint=Footprint.ANTIALIASED),
    StatisticsCase("stack", count=160, loss=SquaredError(), masked=True),
)


@dataclass
class Loops:
    """What the loops find: a view's statistics, and how often the rule's exceptions came up."""

    rows: dict[str, np.ndarray]
    observed: dict[str, np.ndarray]
    counts: dict[str, int] = field(default_factory=lambda: {"clamped": 0, "ended": 0, "skipped": 0})


@dataclass(frozen=True)
class Pair:
    """One Gaussian at one pixel."""

    row: int
    alpha: float
    transmittance: float
    clamped: bool
    offset: np.ndarray


class PixelLoops:
    """One view's splats as numbers, and the loops over them."""

    def __init__(self, cloud: GaussianCloud, problem: ViewProblem) -> None:
        self.problem, camera = problem, problem.camera
        splats = project_reference(cloud, camera, problem.options)
        self.order = splats.index.tolist()
        unsorted = torch.argsort(splats.index)
        self.means, self.colors, self.opacities = (
            getattr(splats, name)[unsorted].numpy() for name in ("means", "colors", "opacities")
        )
        self.conics, self.covariances = (
            getattr(splats, name)[unsorted][:, [0, 1, 1, 2]].reshape(-1, 2, 2).numpy()
            for name in ("conics", "covariances")
        )
        entries = splats.conics[unsorted].tolist()
        self.numbers = [
            (*mean, opacity, conic)
            for mean, opacity, conic in zip(self.means.tolist(), self.opacities.tolist(), entries, strict=True)
        ]
        self.jacobians = self._jacobians(cloud)
        self.background = np.array(problem.options.background)

    def _jacobians(self, cloud: GaussianCloud) -> np.ndarray:
        """∂m/∂μ by central differences, (N, 2, 3)."""
        found, step = np.zeros((len(cloud), 2, 3)), 1e-6
        for axis in range(3):
            moved = []
            for sign in (1, -1):
                means = cloud.means.clone()
                means[:, axis] += sign * step
                splats = project_reference(replace(cloud, means=means), self.problem.camera, self.problem.options)
                moved.append(splats.means[torch.argsort(splats.index)].numpy())
            found[:, :, axis] = (moved[0] - moved[1]) / (2 * step)
        return found

    def pairs(self, x: int, y: int, counts: dict[str, int]) -> tuple[list[Pair], float]:
        """The Gaussians that a pixel's ray meets, front to back, and the transmittance behind them."""
        found, t = [], 1.0
        for row in self.order:
            mean_x, mean_y, opacity, (xx, xy, yy) = self.numbers[row]
            dx, dy = x + 0.5 - mean_x, y + 0.5 - mean_y
            alpha = opacity * math.exp(-0.5 * (xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy))
            if alpha < 1 / 255:
                counts["skipped"] += 1
                continue
            clamped = alpha > 0.999
            alpha = min(alpha, 0.999)
            if t * (1 - alpha) < 1e-4:
                counts["ended"] += 1
                break
            counts["clamped"] += clamped
            found.append(Pair(row, alpha, t, clamped, np.array([dx, dy])))
            t *= 1 - alpha
        return found, t

    def image(self) -> torch.Tensor:
        """The rendered image, (H, W, 3)."""
        camera, unused = self.problem.camera, Loops({}, {}).counts
        image = np.zeros((camera.height, camera.width, 3))
        for y in range(camera.height):
            for x in range(camera.width):
                pairs, t = self.pairs(x, y, unused)
                image[y, x] = t * self.background
                for pair in pairs:
                    image[y, x] += pair.alpha * pair.transmittance * self.colors[pair.row]
        return torch.tensor(image)

    def run(self, error: ErrorMap) -> Loops:
        """Find all the statistics of the view."""
        problem, image = self.problem, self.image().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.loss_of(image), image)
        weights = torch.ones(image.shape[:2]) if problem.weights is None else problem.weights
        counted = (weights > 0).numpy()
        seen = torch.tensor(counted)[:, :, None]
        errors = error(image.detach() * seen, problem.image.double() / 255 * seen).numpy()
        found = Loops(
            {
                each.name: np.zeros((len(self.means), *[3, 3][: 2 * (each.name == "color_cross")]))
                for each in fields(RowStatistics)
            },
            {"views": np.zeros(len(self.means)), "max_radius": np.zeros(len(self.means))},
        )
        cross = np.zeros((len(self.means), 2, 3))
        sums = {
            "m": np.zeros((len(self.means), 2)),
            "|m|": np.zeros((len(self.means), 2)),
            "S": np.zeros_like(self.conics),
        }
        for y, x in np.ndindex(*counted.shape):
            pairs, behind_t = self.pairs(x, y, found.counts)
            behind = behind_t * self.background
            for pair in reversed(pairs):
                found.observed["views"][pair.row] = 1
                if counted[y, x]:
                    self._add_pair(found.rows, cross, pair, errors[y, x], gradient[y, x].numpy())
                    self._add_derivatives(sums, pair, behind, gradient[y, x].numpy())
                behind = behind + pair.alpha * pair.transmittance * self.colors[pair.row]
        found.rows["color_cross"] = np.einsum("nki,nkc->nic", self.jacobians, cross)
        self._finish(found.observed, sums)
        return found

    def _add_pair(self, rows, cross, pair: Pair, error: float, along: np.ndarray) -> None:
        weight = pair.alpha * pair.transmittance
        rows["weight"][pair.row] += weight
        rows["max_weight"][pair.row] = max(rows["max_weight"][pair.row], weight)
        rows["pixels"][pair.row] += 1
        rows["error"][pair.row] += error
        rows["weighted_error"][pair.row] += weight * error
        rows["weighted_squared_error"][pair.row] += weight * error**2
        if not pair.clamped:
            cross[pair.row] += weight * np.outer(self.conics[pair.row] @ pair.offset, along)

    def _add_derivatives(self, sums, pair: Pair, behind: np.ndarray, along: np.ndarray) -> None:
        """Adds of this pixel ∂L/∂m, its size, and (∂L/∂α) ∇²α by m."""
        if pair.clamped:
            return
        by_alpha = along @ (pair.transmittance * self.colors[pair.row] - behind / (1 - pair.alpha))
        slope = self.conics[pair.row] @ pair.offset
        sums["m"][pair.row] += by_alpha * pair.alpha * slope
        sums["|m|"][pair.row] += np.abs(by_alpha * pair.alpha * slope)
        sums["S"][pair.row] += by_alpha * pair.alpha * (np.outer(slope, slope) - self.conics[pair.row])

    def _finish(self, observed, sums) -> None:
        camera = self.problem.camera
        half = np.array([camera.width, camera.height]) / 2
        longest = np.sqrt(np.linalg.eigvalsh(self.covariances)[:, 1])
        observed["max_radius"] = observed["views"] * 3 * longest / max(camera.width, camera.height)
        observed["gradient"] = np.linalg.norm(half * sums["m"], axis=1)
        observed["absolute"] = np.linalg.norm(half * sums["|m|"], axis=1)
        in_world = self.jacobians.transpose(0, 2, 1) @ sums["S"] @ self.jacobians
        observed["splitting"] = in_world[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]


def row_sums(cloud: GaussianCloud, fill: float = math.nan) -> dict[str, torch.Tensor]:
    """Tensors for the fields of RowStatistics, filled with ``fill``."""
    rows = len(cloud)
    shapes = {each.name: (rows, 3, 3) if each.name == "color_cross" else (rows,) for each in fields(RowStatistics)}
    return {name: torch.full_like(cloud.means.new_empty(shape), fill) for name, shape in shapes.items()}


def statistics_of(
    renderer: Renderer, cloud: GaussianCloud, problem: ViewProblem, error: ErrorMap = absolute_error
) -> dict[str, torch.Tensor]:
    """A renderer's answer about one view."""
    into = row_sums(cloud)
    renderer.statistics(cloud, problem, error, WeightedSum(into, overwrite=True))
    return into


def observed_by(
    renderer: Renderer, cloud: GaussianCloud, problem: ViewProblem, *, absolute: bool = True, splitting: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a gradient pass adds to empty statistics, by name, and the gradient, which has a weight of its own."""
    observed = GradientStatistics(cloud.tensors, absolute=absolute, splitting=splitting)
    gradient = {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool, device=cloud.means.device)
    renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient, 0.25, overwrite=True), seen, observed)
    assert torch.equal(observed.views, seen.to(observed.views))
    return {name.partition(".")[2]: value for name, value in observed.tensors().items()}, gradient
