"""What ``rasterization`` cannot do is refused by name, and its signature is gsplat's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.torch_api import rasterization
from splatopt.torch_api.arguments import UNSUPPORTED
from torch_api.scenes import arguments_of, plain_scene


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse_grad", True),
        ("distributed", True),
        ("with_ut", True),
        ("with_eval3d", True),
        ("radial_coeffs", torch.zeros(1, 6)),
        ("tangential_coeffs", torch.zeros(1, 2)),
        ("thin_prism_coeffs", torch.zeros(1, 4)),
        ("ftheta_coeffs", object()),
        ("viewmats_rs", torch.eye(4)[None]),
        ("rolling_shutter", SimpleNamespace(name="ROLLING_TOP_TO_BOTTOM")),
        ("camera_model", "fisheye"),
        ("camera_model", "ortho"),
        ("tile_size", 8),
        ("render_mode", "depth"),
        ("rasterize_mode", "fast"),
        ("width", 0),
        ("height", 40_000),
    ],
)
def test_unsupported_arguments_are_refused_by_name(name: str, value: object) -> None:
    given = arguments_of(plain_scene(torch.float32, rows=4, views=1))
    with pytest.raises(InputError, match=name) as refusal:
        inspect.unwrap(rasterization)(**{**given, name: value})  # types are not checked elsewhere either
    assert isinstance(refusal.value, ValueError)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("means", lambda t: t[None], "batches of scenes"),
        ("quats", lambda t: t[:, :3], "quats"),
        ("scales", lambda t: t[:-1], "scales"),
        ("opacities", lambda t: t[:, None], "opacities"),
        ("viewmats", lambda t: t[0], "viewmats"),
        ("viewmats", lambda t: 0 * t, "invertible"),
        ("viewmats", lambda t: t / 0, "invertible"),
        ("Ks", lambda t: t[0], "Ks"),
        ("Ks", lambda t: t.clone().requires_grad_(), "cannot be differentiated"),
        ("colors", lambda t: t[:2], "colors"),
        ("colors", lambda t: t[:, :3], "K at least 16"),
        ("backgrounds", lambda t: t[:, :2], "backgrounds"),
        ("means", lambda t: t.half(), "float32 or float64"),
        ("scales", lambda t: t.double(), "one float type"),
        ("quats", lambda t: None, "quats and scales, or covars"),
        ("colors", lambda t: t.to("meta"), "on the CPU"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(name, change, what) -> None:
    given = arguments_of(plain_scene(torch.float32, rows=4, views=1))
    given["sh_degree"] = 3
    with pytest.raises(InputError, match=what):
        rasterization(**{**given, name: change(given[name])})


def test_a_global_shutter_may_be_named() -> None:
    given = arguments_of(plain_scene(torch.float32, rows=4, views=1))
    rasterization(**given, rolling_shutter=SimpleNamespace(name="GLOBAL"))


def test_the_signature_is_gsplats() -> None:
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
    ours, theirs = (inspect.signature(function).parameters for function in (rasterization, gsplat.rasterization))
    assert list(ours) == list(theirs)
    differing = [name for name in ours if ours[name].default != theirs[name].default]
    assert differing == ["rolling_shutter"], "its default is a type of CUDA's; None stands for it"


def test_the_table_in_the_docs_names_all_that_gsplats_takes_and_says_what_is_refused() -> None:
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
    page = (Path(__file__).parents[2] / "docs" / "torch_api.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", page, re.MULTILINE)
    said = {name: what for names, what in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(said) == set(inspect.signature(gsplat.rasterization).parameters)
    assert {name for name, what in said.items() if what == "refused"} == set(UNSUPPORTED)
    assert all(re.match(r"supported|refused|accepted|16; others|pinhole; |None or ", what) for what in said.values())
