"""gsplat as a renderer: its arguments, its derivatives, and the optimizers it is enough for.

A stand-in with gsplat 1.5's signature renders what it is handed with the reference, after undoing gsplat's
conventions by themselves; what only a GPU can show is marked ``gpu``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import splatopt.optim  # noqa: F401 - registers the optimizers
from raster.cases import make_camera, random_cloud
from splatopt.core.camera import Camera
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.row_statistics import GradientStatistics, absolute_error
from splatopt.raster.gsplat_peer import GsplatRenderer
from splatopt.raster.losses import L1Ssim, SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, render_reference
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective

OPTIONS = [
    RenderOptions(),
    RenderOptions(background=(0.2, 0.5, 0.9), sh_degree=1),
    RenderOptions(footprint=Footprint.ANTIALIASED, sh_degree=0),
]


class StandIn:
    """``gsplat.rasterization`` of version 1.5 as far as it is called; keeps the arguments."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.01,
        far_plane: float = 1e10,
        radius_clip: float = 0.0,
        eps2d: float = 0.3,
        sh_degree: int | None = None,
        packed: bool = True,
        tile_size: int = 16,
        backgrounds: Tensor | None = None,
        render_mode: str = "RGB",
        sparse_grad: bool = False,
        absgrad: bool = False,
        rasterize_mode: str = "classic",
    ) -> tuple[Tensor, Tensor, dict]:
        self.calls.append(dict(locals()))
        count = len(means)
        # The shapes that gsplat asserts.
        assert [tuple(tensor.shape) for tensor in (means, quats, scales, opacities)] == [
            (count, 3),
            (count, 4),
            (count, 3),
            (count,),
        ]
        assert tuple(viewmats.shape) == (1, 4, 4)
        assert tuple(Ks.shape) == (1, 3, 3)
        assert backgrounds is not None
        assert tuple(backgrounds.shape) == (1, 3)
        assert colors.shape[0] == count
        assert colors.shape[2:] == (3,)
        assert sh_degree is not None
        assert (sh_degree + 1) ** 2 <= colors.shape[1]
        assert not packed  # radii come by Gaussian only then
        cloud = GaussianCloud(means, scales.log(), quats, opacities.logit(), colors[:, 0], colors[:, 1:])
        focal = Ks[0]
        camera = Camera(
            viewmats[0].double(), *(float(focal[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))), width, height
        )
        options = RenderOptions(tuple(backgrounds[0].tolist()), Footprint(rasterize_mode), sh_degree)
        drawn = render_reference(cloud, camera, options)
        image = drawn.image
        if render_mode == "RGB+D":
            image = torch.cat([image, drawn.depth[..., None]], dim=2)
        radii = torch.ones(1, count, 2, dtype=torch.int32)
        radii[0, 3, 1] = 0
        return image[None], drawn.alpha[None, ..., None], {"radii": radii}


@pytest.fixture
def scene():
    cloud = random_cloud(torch.Generator().manual_seed(4), count=40)
    camera = make_camera(24, 18)
    target = torch.randint(0, 256, (18, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return cloud, camera, target


@pytest.mark.parametrize("options", OPTIONS)
def test_the_image_is_the_references(scene, options):
    cloud, camera, _ = scene
    found = GsplatRenderer(StandIn()).render(cloud, camera, options)
    expected = ReferenceRenderer().render(cloud, camera, options)
    for name in ("image", "alpha", "depth"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


def test_the_arguments_are_gsplats(scene):
    cloud, camera, _ = scene
    stand_in = StandIn()
    GsplatRenderer(stand_in).render(cloud.to(torch.float32), camera, RenderOptions(sh_degree=2))
    (call,) = stand_in.calls
    assert call["sh_degree"] == 2
    assert call["near_plane"] == 0.01
    assert call["eps2d"] == 0.3
    assert call["rasterize_mode"] == "classic"
    assert {call[name].dtype for name in ("means", "scales", "viewmats", "Ks", "backgrounds")} == {torch.float32}
    torch.testing.assert_close(call["scales"].log(), cloud.log_scales.float())
    assert torch.equal(call["quats"], cloud.quats.float())
    pinhole = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    torch.testing.assert_close(call["Ks"][0], pinhole)
    torch.testing.assert_close(call["viewmats"][0], camera.world_to_camera.float())


@pytest.mark.parametrize("options", OPTIONS)
def test_the_gradient_is_the_references(scene, options):
    cloud, camera, target = scene
    found, losses, masks = [], [], []
    for renderer in (GsplatRenderer(StandIn()), ReferenceRenderer()):
        gradient = {name: torch.ones_like(value) for name, value in cloud.tensors.items()}
        seen = torch.zeros(len(cloud), dtype=torch.bool)
        problem = ViewProblem(camera, target, options)
        losses.append(renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient, 0.5), seen))
        found.append(gradient)
        masks.append(seen)
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-9)
    assert losses[0].squared_error == pytest.approx(losses[1].squared_error, rel=1e-9)
    for name, part in found[1].items():
        torch.testing.assert_close(found[0][name], part, rtol=1e-7, atol=1e-9, msg=name)
    assert masks[0].tolist() == [row != 3 for row in range(len(cloud))]


@pytest.mark.parametrize("loss", [L1Ssim(), SquaredError()])
def test_residuals_and_vjp_are_the_references(scene, loss):
    cloud, camera, target = scene
    mine, reference = GsplatRenderer(StandIn()), ReferenceRenderer()
    view = (cloud, ViewProblem(camera, target, RenderOptions(), loss))
    residuals = reference.residuals(*view)
    torch.testing.assert_close(mine.residuals(*view), residuals, rtol=1e-9, atol=1e-9)
    u = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for renderer in (mine, reference):
        gradient = {name: torch.full_like(value, 9.0) for name, value in cloud.tensors.items()}
        renderer.vjp(*view, u, WeightedSum(gradient, 0.25, overwrite=True))
        found.append(gradient)
    for name, part in found[1].items():
        torch.testing.assert_close(found[0][name], part, rtol=1e-7, atol=1e-9, msg=name)


def test_optimizers_run_that_need_no_more_and_the_others_say_what_they_lack(scene):
    cloud, camera, target = scene
    objective = PhotometricObjective(cloud, [camera], [target], GsplatRenderer(StandIn()))
    refused = {}
    for name in ("tr2", "tr2-paper", "block-gn", "lm"):
        entry = find_optimizer(name)
        with pytest.raises(MissingOracleError) as caught:
            entry.optimizer(objective, entry.options(), torch.Generator())
        refused[name] = str(caught.value)
    assert "gauss_newton_diagonal" in refused["tr2"]
    assert "gauss_newton_blocks, jvp" in refused["block-gn"]
    for sentence in refused.values():
        assert "on the gsplat backend does not give (it gives gradient, vjp); choose another backend" in sentence
    changed = {"tr2": {"estimator": "residual"}, "esgd": {}, "sign-tr": {}, "adam-tr": {}, "adam": {}}
    for name, options in changed.items():
        entry = find_optimizer(name)
        optimizer = entry.optimizer(objective, entry.options(**options), torch.Generator().manual_seed(0))
        before = cloud.sh_dc.clone()
        optimizer.step((0,), Progress(0, 10))
        assert not torch.equal(cloud.sh_dc, before), name
    assert GsplatRenderer(StandIn()).oracles == {Oracle.GRADIENT, Oracle.VJP}


def test_it_refuses_statistics_of_rows_by_name(scene):
    cloud, camera, target = scene
    renderer, problem = GsplatRenderer(StandIn()), ViewProblem(camera, target)
    gradient = {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    observed = GradientStatistics(cloud.tensors)
    with pytest.raises(MissingOracleError, match="the gsplat renderer does not give statistics"):
        renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient), seen, observed)
    with pytest.raises(MissingOracleError, match="the gsplat renderer does not give statistics"):
        renderer.statistics(cloud, problem, absolute_error, WeightedSum(gradient))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("options", OPTIONS)
def test_gsplat_itself_draws_the_references_image_and_gradient(scene, options):
    pytest.importorskip("gsplat", reason="gsplat is not installed (extra gsplat)")
    cloud, camera, target = scene
    on_gpu = cloud.to(torch.float32).to("cuda")
    found = GsplatRenderer().render(on_gpu, camera, options).image.cpu().double()
    expected = ReferenceRenderer().render(cloud, camera, options).image
    assert float((found - expected).abs().max()) < 1e-4
    gradients = []
    for renderer, tensors in ((GsplatRenderer(), on_gpu), (ReferenceRenderer(), cloud)):
        gradient = {name: torch.zeros_like(value) for name, value in tensors.tensors.items()}
        seen = torch.zeros(len(tensors), dtype=torch.bool, device=tensors.means.device)
        renderer.accumulate_gradient(tensors, ViewProblem(camera, target, options), WeightedSum(gradient), seen)
        gradients.append({name: part.cpu().double() for name, part in gradient.items()})
    for name, part in gradients[1].items():
        assert float((gradients[0][name] - part).norm()) <= 1e-3 * float(part.norm()) + 1e-9, name
