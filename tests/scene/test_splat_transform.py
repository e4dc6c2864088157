"""SOG and .ksplat through PlayCanvas' program: how it is called, and what is said where it is not or fails."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile

import pytest
import torch

from raster.cases import make_camera, random_cloud
from splatopt.core.checks import InputError
from splatopt.metrics.image import psnr
from splatopt.raster.reference import render_reference
from splatopt.raster.types import RenderOptions
from splatopt.scene.ply import save_ply
from splatopt.scene.scene_files import load_scene, save_scene


@pytest.fixture
def cloud():
    return random_cloud(torch.Generator().manual_seed(1), 50, 1).to(torch.float32)


def make_program(folder, monkeypatch, script: str) -> None:
    program = folder / "bin" / "splat-transform"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def sog() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("meta.json", "means_l.webp"):
            archive.writestr(name, b"{}")
    return packed.getvalue()


def ksplat() -> bytes:
    head = struct.pack("<BBHIIIIH", 0, 1, 0, 1, 1, 100, 100, 1)
    return head + bytes(4096 - len(head)) + bytes(1024) + bytes(4400)


def test_it_packs_what_it_is_given(cloud, tmp_path, monkeypatch):
    make_program(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/words\nfor last; do :; done\ncp "$4" "$last"')
    save_scene(cloud, tmp_path / "-odd name.sog")
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-q", "-g", "cpu"]
    assert words[3].startswith("/")
    assert torch.equal(load_scene(tmp_path / "-odd name.sog").means, cloud.means)
    assert not os.path.exists(words[3]), "what was written on the way is gone"


@pytest.mark.parametrize(("content", "ending"), [(sog, ".sog"), (ksplat, ".ksplat")])
def test_it_unpacks_by_what_a_file_holds(content, ending, cloud, tmp_path, monkeypatch):
    save_ply(cloud, tmp_path / "plain.ply")
    make_program(tmp_path, monkeypatch, f'echo "$2" > {tmp_path}/given\ncp {tmp_path}/plain.ply "$3"')
    (tmp_path / "scene.bin").write_bytes(content())
    assert torch.equal(load_scene(tmp_path / "scene.bin").means, cloud.means)
    assert (tmp_path / "given").read_text().strip().endswith(ending)


def test_a_sog_in_parts_is_given_where_it_lies(cloud, tmp_path, monkeypatch):
    save_ply(cloud, tmp_path / "plain.ply")
    make_program(tmp_path, monkeypatch, f'echo "$2" > {tmp_path}/given\ncp {tmp_path}/plain.ply "$3"')
    (tmp_path / "meta.json").write_text('{"means": {"files": ["means_l.webp"]}}')
    load_scene(tmp_path / "meta.json")
    assert (tmp_path / "given").read_text().strip() == str((tmp_path / "meta.json").resolve())


def test_failures_are_a_sentence(cloud, tmp_path, monkeypatch):
    make_program(tmp_path, monkeypatch, "echo working; echo 'Error: too old a Node' >&2; exit 1")
    with pytest.raises(InputError, match="splat-transform failed: Error: too old a Node; look at") as caught:
        save_scene(cloud, tmp_path / "scene.sog")
    assert "\n" not in str(caught.value)
    (tmp_path / "bin" / "splat-transform").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(InputError, match="splat-transform failed: code 0"):
        save_scene(cloud, tmp_path / "scene.sog")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "scene.ksplat").write_bytes(ksplat())
    for act in (lambda: save_scene(cloud, tmp_path / "scene.sog"), lambda: load_scene(tmp_path / "scene.ksplat")):
        with pytest.raises(InputError, match="needs splat-transform, which is not on the search path; npm install"):
            act()
    assert not (tmp_path / "scene.sog").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("splat-transform") is None, reason="splat-transform is not on the search path")
def test_the_program_itself(tmp_path):
    """It reads what gsply writes, in the frame that we say, and gsply reads what it writes."""
    import subprocess

    cloud = random_cloud(torch.Generator().manual_seed(3), 100, 3).to(torch.float32)
    camera = make_camera(48, 36)
    expected = render_reference(cloud, camera, RenderOptions()).image
    save_scene(cloud, tmp_path / "scene.sog")
    read = [load_scene(tmp_path / "scene.sog")]
    save_ply(cloud, tmp_path / "scene.ply")
    for ending in (".spz", ".compressed.ply"):
        save_scene(cloud, tmp_path / f"ours{ending}", [])
        for words in ((f"ours{ending}", f"back{ending}.ply"), ("scene.ply", f"theirs{ending}")):
            files = [str(tmp_path / word) for word in words]
            subprocess.run(["splat-transform", "-q", *files], check=True, capture_output=True)
            read.append(load_scene(files[1]))
    for one in read:
        assert psnr(render_reference(one, camera, RenderOptions()).image, expected) > 33
