"""The native rasterization against float64 references: the rendering rule's own, and its PyTorch twin in all modes."""

from __future__ import annotations

import gc
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from raster.cases import RENDER_CASES, RenderCase, find_case
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.core import native
from splatopt.core.constants import SH_C0
from splatopt.raster.gsplat_peer import rasterization_arguments
from splatopt.raster.reference import render_reference
from splatopt.scene.gaussians import GaussianCloud
from splatopt.torch_api import rasterization, spherical_harmonics, workers
from splatopt.torch_api.harmonics import harmonics_of_views
from torch_api.scenes import DIFFERENTIABLE, arguments_of, plain_scene

needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not built")


def weighted(image: Tensor, alpha: Tensor) -> Tensor:
    """A sum that asks every pixel and channel something else."""
    generator = torch.Generator().manual_seed(7)
    draw = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one) for one in (image, alpha)]
    return (image * draw[0]).sum() + (alpha * draw[1]).sum()


def drawn_cloud(case: RenderCase, dtype: torch.dtype, through: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Image with depth, alpha, and the gradients of the cloud's tensors: by the rasterization or by the reference."""
    cloud = case.cloud().to(dtype)
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in cloud.tensors.items()}
    if through == "rasterization":
        given = rasterization_arguments(tensors, case.camera, case.options, "RGB+D")
        # A logit's gradient holds 1 - o, of which float32 keeps few digits near 1: theirs is asked as it is given.
        given["opacities"] = given["opacities"].detach().requires_grad_()
        image, alpha, _ = rasterization(**given)
    else:
        rendering = render_reference(GaussianCloud(**tensors), case.camera, case.options)
        image = torch.cat([rendering.image, rendering.depth[..., None]], dim=-1)[None]
        alpha = rendering.alpha[None, ..., None]
    weighted(image, alpha).backward()
    gradients = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in tensors.items()}
    logits = gradients.pop("logit_opacities")
    opacities = torch.sigmoid(tensors["logit_opacities"].detach())
    through_reference = logits / (opacities * (1 - opacities))
    gradients["opacities"] = given["opacities"].grad if through == "rasterization" else through_reference
    return image.detach(), alpha.detach(), gradients


@needs_native
@pytest.mark.parametrize("case", RENDER_CASES, ids=lambda case: case.name)
def test_images_depths_alphas_and_gradients_are_those_of_the_renderers_reference(case: RenderCase) -> None:
    image, alpha, gradients = drawn_cloud(case, torch.float32, "rasterization")
    true_image, true_alpha, true_gradients = drawn_cloud(case, torch.float64, "reference")
    assert (image.double() - true_image).abs().max() < 1e-4
    assert (alpha.double() - true_alpha).abs().max() < 1e-4
    for name, truth in true_gradients.items():
        assert relative_vector_error(gradients[name], truth) < 1e-3, name
        assert worst_elementwise_error(gradients[name], truth, floor=5e-2) < 1e-2, name


def test_float64_is_the_renderers_reference_to_the_last_digits() -> None:
    case = find_case("ordinary_antialiased")
    results = drawn_cloud(case, torch.float64, "rasterization")
    truth = drawn_cloud(case, torch.float64, "reference")
    assert (results[0] - truth[0]).abs().max() < 1e-9
    for name in truth[2]:
        assert relative_vector_error(results[2][name], truth[2][name]) < 1e-9, name


MODES = [
    (mode, {"RGB": 3, "D": 3, "ED": 1, "RGB+D": 7, "RGB+ED": None}[mode], packed, footprint)
    for mode in ("RGB", "D", "ED", "RGB+D", "RGB+ED")
    for packed, footprint in ((True, "antialiased"), (False, "classic"))
]


@needs_native
@pytest.mark.parametrize(("mode", "channels", "packed", "footprint"), MODES)
def test_every_mode_agrees_with_float64_in_values_and_gradients(mode, channels, packed, footprint) -> None:
    results = []
    for dtype in (torch.float64, torch.float32):
        scene = plain_scene(dtype, rows=50, views=2, channels=channels)
        given = arguments_of(scene, render_mode=mode, packed=packed, rasterize_mode=footprint)
        image, alpha, meta = rasterization(**given)
        meta["means2d"].retain_grad()
        weighted(image, alpha).backward()
        blank = {name: torch.zeros_like(scene[name]) for name in DIFFERENTIABLE}
        gradients = {name: blank[name] if scene[name].grad is None else scene[name].grad for name in DIFFERENTIABLE}
        results.append((image, alpha, meta, {**gradients, "means2d": meta["means2d"].grad}))
    (image, alpha, meta, truth), (image32, alpha32, meta32, gradients) = results
    assert (image - image32).abs().max() < 1e-4
    assert (alpha - alpha32).abs().max() < 1e-4
    for name, true_gradient in truth.items():
        assert relative_vector_error(gradients[name], true_gradient) < 1e-3, name
    assert torch.equal(meta["radii"], meta32["radii"])
    assert torch.equal(meta["tiles_per_gauss"], meta32["tiles_per_gauss"])
    for name in ("depths", "conics", "opacities"):
        assert relative_vector_error(meta32[name], meta[name]) < 1e-5, name


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_black_gaussians_get_a_gradient_and_what_lies_below_black_gets_none(dtype) -> None:
    scene = plain_scene(dtype, rows=50, views=1, channels=None)
    colors = scene["colors"].detach().clone()
    colors[:, 1:] = 0
    colors[::2, 0] = -0.5 / SH_C0  # black, but for rounding
    colors[1::2, 0] = -0.51 / SH_C0
    scene |= {"colors": colors.requires_grad_(), "backgrounds": torch.zeros(1, 3, dtype=dtype)}
    image, _, meta = rasterization(**arguments_of(scene, packed=False))
    assert image.abs().max() < 1e-6
    image.sum().backward()
    drawn = (meta["radii"][0] > 0).all(dim=-1)
    assert (scene["colors"].grad[::2, 0][drawn[::2]] > 0).all(dim=-1).float().mean() > 0.9
    assert (scene["colors"].grad[1::2] == 0).all()


@needs_native
def test_a_colour_that_is_no_number_is_seen() -> None:
    scene = plain_scene(torch.float32, rows=50, views=1, channels=None)
    colors = scene["colors"].detach().clone()
    colors[:, 0, 1] = math.nan
    image, _, _ = rasterization(**arguments_of({**scene, "colors": colors}))
    assert image[..., 1].isnan().any()
    assert image[..., 0].isfinite().all()


@needs_native
def test_absolute_gradients_are_sums_over_pixels_of_magnitudes() -> None:
    found = []
    for dtype in (torch.float64, torch.float32):
        scene = plain_scene(dtype, rows=50, views=2)
        image, alpha, meta = rasterization(**arguments_of(scene, absgrad=True, packed=False, render_mode="RGB+D"))
        meta["means2d"].retain_grad()
        weighted(image, alpha).backward()
        found.append((meta["means2d"].absgrad, meta["means2d"].grad))
    (truth, signed), (absolute, _) = found
    assert relative_vector_error(absolute, truth) < 1e-4
    assert (truth >= signed.abs() - 1e-9).all()
    assert truth.sum() > 1.2 * signed.abs().sum(), "some of it cancels"


@needs_native
def test_packed_and_unpacked_rows_are_the_same() -> None:
    image, alpha, meta = rasterization(**arguments_of(plain_scene(torch.float32, rows=40, views=3), packed=False))
    packed_image, packed_alpha, packed = rasterization(**arguments_of(plain_scene(torch.float32, rows=40, views=3)))
    assert torch.equal(image, packed_image)
    assert torch.equal(alpha, packed_alpha)
    at = packed["camera_ids"], packed["gaussian_ids"]
    drawn = (meta["radii"] > 0).all(dim=-1)
    assert 0 < len(at[0]) == drawn.sum() < drawn.numel()
    for name in ("radii", "means2d", "depths", "conics", "opacities", "tiles_per_gauss"):
        assert torch.equal(packed[name], meta[name][at]), name
    assert meta["gaussian_ids"] is None
    assert (meta["n_cameras"], meta["width"], meta["height"], meta["tile_size"]) == (3, 41, 30, 16)
    assert (meta["tile_width"], meta["tile_height"]) == (3, 2)
    assert (meta["means2d"][~drawn] == 0).all()


@needs_native
def test_a_batch_of_cameras_is_each_of_them_alone() -> None:
    scene = plain_scene(torch.float32, rows=40, views=3)
    image, _, _ = rasterization(**arguments_of(scene))
    for view in range(3):
        alone = {**scene, **{name: scene[name][view : view + 1] for name in ("viewmats", "Ks", "backgrounds")}}
        assert torch.equal(rasterization(**arguments_of(alone))[0][0], image[view])


@needs_native
def test_each_camera_may_have_colours_or_coefficients_of_its_own() -> None:
    for channels in (5, None):
        scene = plain_scene(torch.float32, rows=40, views=2, channels=channels)
        own = torch.stack([scene["colors"].detach(), 2 * scene["colors"].detach()]).requires_grad_()
        both, _, _ = rasterization(**arguments_of({**scene, "colors": own}))
        both.sum().backward()
        second, _, _ = rasterization(**arguments_of({**scene, "colors": own[1]}))
        assert torch.equal(second[1], both[1])
        assert own.grad.shape == own.shape
        assert (own.grad[0] != 0).any()
        assert (own.grad[1] != 0).any()


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            scene = plain_scene(torch.float32, rows=1500, views=1, channels=3)
            image, alpha, _ = rasterization(**arguments_of(scene))
            weighted(image, alpha).backward()
            results.append([image, alpha, *(scene[name].grad for name in DIFFERENTIABLE if name != "backgrounds")])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@needs_native
def test_covariances_stand_for_quaternions_and_scales() -> None:
    scene = plain_scene(torch.float32, rows=40, views=2)
    image, _, meta = rasterization(**arguments_of(scene))
    from splatopt.torch_api import quat_scale_to_covar_preci

    covars, _ = quat_scale_to_covar_preci(scene["quats"].detach(), scene["scales"].detach(), compute_preci=False)
    given = arguments_of({**scene, "quats": None, "scales": None}, covars=covars.requires_grad_())
    other, _, other_meta = rasterization(**given)
    assert (image - other).abs().max() < 1e-4
    assert torch.equal(meta["radii"], other_meta["radii"])
    other.square().sum().backward()
    assert (covars.grad != 0).any()


@pytest.mark.parametrize("mode", ["RGB+D", "RGB+ED"])
@pytest.mark.parametrize("covariances", [False, True])
def test_gradcheck_of_every_differentiable_input(mode: str, covariances: bool) -> None:
    scene = plain_scene(torch.float64, rows=5, views=2, size=(9, 7), degree=1)
    names = [name for name in DIFFERENTIABLE if not (covariances and name in ("quats", "scales"))]
    axes = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covars = (0.02 * axes @ axes.transpose(1, 2) + 0.02 * torch.eye(3)).requires_grad_()

    def render(*values: Tensor) -> tuple[Tensor, Tensor]:
        given = arguments_of({**scene, **dict(zip(names, values, strict=False))}, render_mode=mode)
        if covariances:
            given |= {"quats": None, "scales": None, "covars": values[-1]}
        image, alpha, _ = rasterization(**given, rasterize_mode="antialiased")
        return image, alpha

    values = [scene[name] for name in names] + ([covars] if covariances else [])
    assert torch.autograd.gradcheck(render, values, fast_mode=True, atol=1e-6)


@needs_native
def test_derivatives_need_no_second_drawing_and_can_be_asked_twice() -> None:
    scene = plain_scene(torch.float32, rows=40, views=1)
    first, _, _ = rasterization(**arguments_of(scene))
    second, _, _ = rasterization(**arguments_of(plain_scene(torch.float32, rows=30, views=1, seed=9)))
    (once,) = torch.autograd.grad(first.square().sum(), scene["means"], retain_graph=True)
    (twice,) = torch.autograd.grad(first.square().sum(), scene["means"])
    assert torch.equal(once, twice), "what is drawn between them changes nothing"
    assert second.isfinite().all()
    with pytest.raises(RuntimeError):
        first.sum().backward()


@needs_native
def test_rasterizers_are_used_again_and_no_graph_keeps_none() -> None:
    given = arguments_of(plain_scene(torch.float32, rows=40, views=1))
    image = alpha = meta = None
    for _ in range(20):
        image, alpha, meta = rasterization(**given)
    del image, alpha, meta
    gc.collect()
    before = len(workers._idle[torch.get_num_threads()])
    with torch.no_grad():
        rasterization(**given)
    assert len(workers._idle[torch.get_num_threads()]) == before
    assert 1 <= before <= 8


@needs_native
def test_a_script_that_ends_with_a_graph_ends_quietly() -> None:
    script = (
        "import torch\nfrom splatopt.torch_api import rasterization\n"
        "one, eye = torch.ones(1, 3, requires_grad=True), torch.eye(4)[None]\n"
        "image, _, _ = rasterization(one, torch.ones(1, 4), one, one[:, 0], one, eye, eye[:, :3, :3], 8, 8)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stderr == ""


def test_backgrounds_show_where_nothing_is_and_depths_have_none() -> None:
    scene = plain_scene(torch.float64, rows=1, views=2)
    scene["means"] = scene["means"].detach() + torch.tensor([0.0, 0.0, 50.0], dtype=torch.float64)
    scene["opacities"] = torch.zeros(1, dtype=torch.float64)
    image, alpha, _ = rasterization(**arguments_of(scene, render_mode="RGB+D"))
    assert (alpha == 0).all()
    assert torch.equal(image[..., :3], scene["backgrounds"][:, None, None].expand(2, 30, 41, 3))
    assert (image[..., 3] == 0).all()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planes_clip_and_small_radii_leave_rows_out(dtype: torch.dtype) -> None:
    scene = plain_scene(dtype, rows=60, views=1)
    depth = rasterization(**arguments_of(scene, packed=False))[2]["depths"][0]
    seen = depth > 0
    middle = float(depth.detach()[seen].median())
    near = rasterization(**arguments_of(scene, packed=False, near_plane=middle))[2]["depths"][0]
    far = rasterization(**arguments_of(scene, packed=False, far_plane=middle))[2]["depths"][0]
    assert torch.equal(near > 0, depth > middle)
    assert torch.equal(far > 0, seen & (depth <= middle))
    radii = rasterization(**arguments_of(scene, packed=False))[2]["radii"][0]
    clip = int(radii[seen].max(dim=1).values.median())
    clipped = rasterization(**arguments_of(scene, packed=False, radius_clip=clip))[2]["radii"][0]
    assert torch.equal((clipped > 0).all(1), (radii > clip).any(1))
    wide = rasterization(**arguments_of(scene, packed=False, eps2d=4.0))[2]["conics"][0]
    assert (wide[:, 0] <= 0.25 + 1e-6).all()


def test_no_gaussians_and_no_channels_of_colour_but_depth() -> None:
    for dtype in (torch.float32, torch.float64):
        scene = plain_scene(dtype, rows=0, views=2, channels=3)
        image, alpha, meta = rasterization(**arguments_of(scene, render_mode="RGB+ED"))
        assert image.shape == (2, 30, 41, 4)
        assert (alpha == 0).all()
        assert meta["means2d"].shape == (0, 2)
        image.sum().backward()


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gaussians_with_harmonics_are_the_background(dtype: torch.dtype, degree: int) -> None:
    scene = plain_scene(dtype, rows=0, views=2, degree=degree)
    images, _, _ = rasterization(**arguments_of(scene))
    images.sum().backward()
    assert torch.equal(images, scene["backgrounds"][:, None, None].expand_as(images))
    assert scene["colors"].grad.shape == scene["colors"].shape
    colors = spherical_harmonics(degree, scene["means"], scene["colors"], torch.zeros(0, dtype=torch.bool))
    assert colors.shape == (0, 3)
    assert colors.dtype == dtype


@needs_native
@pytest.mark.slow
def test_adam_on_world_to_camera_brings_a_moved_camera_back() -> None:
    """One that is turned by a degree and moved by a hundredth of its distance, by the photograph alone."""
    scene = plain_scene(torch.float32, rows=150, views=1, size=(48, 36), degree=0)
    scene = {name: tensor.detach() for name, tensor in scene.items()}
    # Deep and fine, so that a turn and a move do not look alike.
    scene |= {"means": scene["means"] * torch.tensor([1.0, 1.0, 2.0]), "scales": 0.4 * scene["scales"]}
    given, true_pose, angle = arguments_of(scene), scene["viewmats"][0], math.radians(1)
    photograph, _, _ = rasterization(**given)
    distance, motion = float(true_pose[:3, 3].norm()), torch.eye(4)
    motion[0, 0] = motion[2, 2] = math.cos(angle)
    motion[0, 2], motion[2, 0], motion[0, 3] = math.sin(angle), -math.sin(angle), 0.01 * distance
    pose = (motion @ true_pose)[None].clone().requires_grad_()

    def errors() -> tuple[float, float]:
        """The greatest angle by which an axis is turned, degrees, and the camera's distance from its place."""
        found = pose.detach()[0].double()
        axes = torch.nn.functional.normalize(found[:3, :3], dim=1) * true_pose[:3, :3].double()
        centers = [torch.linalg.inv(one)[:3, 3] for one in (found, true_pose.double())]
        return math.degrees(float(axes.sum(1).clamp(-1, 1).acos().max())), float((centers[0] - centers[1]).norm())

    before = errors()
    optimizer = torch.optim.Adam([pose], lr=6e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
    for _ in range(300):
        optimizer.zero_grad()
        image, _, _ = rasterization(**{**given, "viewmats": pose})
        (image - photograph).square().mean().backward()
        optimizer.step()
        schedule.step()
    after = errors()
    assert before[0] == pytest.approx(1.0, rel=1e-3)
    assert before[1] == pytest.approx(0.01 * distance, rel=1e-2)
    assert after[0] < 0.02
    assert after[1] < 2e-4 * distance


def test_coefficients_of_another_type_and_no_cameras() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, coefficients = torch.randn(50, 3, generator=generator), torch.randn(50, 16, 3, generator=generator)
    expected = spherical_harmonics(3, directions, coefficients)
    for other in (coefficients.double(), coefficients.to(torch.float64)[:, :, [0, 1, 2]]):
        torch.testing.assert_close(spherical_harmonics(3, directions, other), expected)
    kept = torch.arange(50) % 2
    masked = spherical_harmonics(3, directions, coefficients, kept.to(torch.uint8))
    torch.testing.assert_close(masked, expected * kept[:, None])
    leaf = coefficients.clone().requires_grad_()
    harmonics_of_views(3, directions.expand(0, 50, 3), leaf, None).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()
