"""A scene's page: the picture of its viewer is that of the renderer; nothing is asked of the network."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.browser import Browser, opened_browser
from raster.cases import make_camera, random_cloud
from splatopt.core.camera import Camera
from splatopt.metrics.image import psnr
from splatopt.raster.reference import render_reference
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.report.splat_page import StartView, centered_view, write_splat_page
from splatopt.scene.gaussians import GaussianCloud


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened_browser(tmp_path_factory.mktemp("browser"), webgl=True) as found:
        yield found


def make_cloud(degree: int, count: int = 80) -> GaussianCloud:
    return random_cloud(torch.Generator().manual_seed(degree), count, degree).to(torch.float32)


def picture(browser: Browser, folder: Path) -> torch.Tensor:
    browser.evaluate("document.querySelector('footer').hidden = true")
    with Image.open(browser.screenshot(folder / "page.png", whole=False)) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")) / 255.0)


def rendered(cloud: GaussianCloud, camera: Camera, options: RenderOptions) -> torch.Tensor:
    return render_reference(cloud.to(torch.float64), camera, options).image.clamp(0, 1)


@pytest.mark.parametrize(("degree", "footprint"), [(3, Footprint.CLASSIC), (2, Footprint.ANTIALIASED)])
def test_the_page_shows_what_the_renderer_renders(browser, tmp_path, degree, footprint):
    cloud, camera = make_cloud(degree), make_camera(320, 240)
    camera = replace(camera, cx=camera.cx + 9, cy=camera.cy - 7)
    options = RenderOptions((0.2, 0.3, 0.4), footprint)
    write_splat_page(tmp_path / "scene.html", cloud, StartView.of(cloud, [camera]), options, "A scene")
    browser.open(tmp_path / "scene.html", width=320, height=240)
    shown = picture(browser, tmp_path)
    assert psnr(shown, rendered(cloud, camera, options)) > 40
    assert shown.std() > 0.05
    assert [one.split(":")[0] for one in browser.requests()] == ["file", "blob"]
    assert browser.complaints() == []


def test_one_odd_row_does_not_coarsen_the_colours_of_all_others(browser, tmp_path):
    cloud, camera, options = make_cloud(2, count=400), make_camera(320, 240), RenderOptions()
    camera = replace(camera, width=320, height=240)
    cloud.sh_rest[0, 3, 1], cloud.logit_opacities[0] = 600.0, -9.0
    told: list[str] = []
    write_splat_page(tmp_path / "scene.html", cloud, StartView.of(cloud, [camera]), options, "A scene", told)
    assert told == [
        "1 of 400 Gaussians have view-dependent colours beyond what a page holds, and are brought to its ends"
    ]
    browser.open(tmp_path / "scene.html", width=320, height=240)
    assert psnr(picture(browser, tmp_path), rendered(cloud, camera, options)) > 38


def test_it_is_turned_by_hand_and_goes_back(browser, tmp_path):
    cloud, camera = make_cloud(1), make_camera(320, 240)
    write_splat_page(tmp_path / "scene.html", cloud, StartView.of(cloud, [camera]), RenderOptions(), "A scene")
    browser.open(tmp_path / "scene.html", width=320, height=240)
    start = picture(browser, tmp_path)

    def after(act) -> torch.Tensor:
        act()
        time.sleep(0.3)
        return picture(browser, tmp_path)

    def drag() -> None:
        button = {"button": "left", "clickCount": 1}
        browser.mouse("mouseMoved", 160, 120)
        browser.call("Input.dispatchMouseEvent", type="mousePressed", x=160, y=120, buttons=1, **button)
        browser.mouse("mouseMoved", 220, 130, pressed=True)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=220, y=130, **button)

    for act in (
        drag,
        lambda: browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=160, y=120, deltaX=0, deltaY=-400),
        lambda: browser.key("ArrowUp"),
    ):
        assert psnr(after(act), start) < 35
        assert psnr(after(lambda: browser.key("r")), start) > 60


def test_a_scene_without_cameras_is_seen_whole(browser, tmp_path):
    cloud, options = make_cloud(0, 60), RenderOptions()
    far = GaussianCloud(**{**cloud.tensors, "means": 1000 * cloud.means, "log_scales": cloud.log_scales + np.log(1000)})
    moved, view = centered_view(far, StartView.around(far))
    write_splat_page(tmp_path / "scene.html", moved, view, options, "Far")
    browser.open(tmp_path / "scene.html", width=180, height=180)
    shown = picture(browser, tmp_path)
    assert psnr(shown, rendered(moved, view.camera.resized(180, 180), options)) > 40
    assert psnr(shown, rendered(far, StartView.around(far).camera.resized(180, 180), options)) > 40
    seen = (shown.sum(dim=2) > 0.1).nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0)).min() > 60


def test_text_of_others_acts_on_nothing(tmp_path):
    cloud, camera = make_cloud(0, 3), make_camera(32, 24)
    title = "</title><script>alert('x')</script>"
    write_splat_page(tmp_path / "scene.html", cloud, StartView.of(cloud, [camera]), RenderOptions(), title)
    page = (tmp_path / "scene.html").read_text()
    assert "alert('x')</script>" not in page
    assert len(re.findall("<script>", page)) == 1
    assert not re.findall(r"https?://", page)
