"""Which renderer and which device a run gets, and what is said where it cannot have them."""

from __future__ import annotations

import pytest
import torch

from splatopt.core import devices, native
from splatopt.core.checks import InputError
from splatopt.raster import render as render_module
from splatopt.raster.render import find_backend, make_renderer, renderer_in_use

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs as PyTorch would tell of them, of a compute capability that can be chosen."""

    def make(capability: tuple[int, int] = (8, 6)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Tesla P100")

    return make


@pytest.fixture
def installed(monkeypatch):
    """Say which modules are installed."""

    def make(*names: str) -> None:
        monkeypatch.setattr(render_module, "is_installed", lambda name: name in names)

    return make


TRITON = ("triton", "splatopt.raster.gpu")


def test_without_a_gpu_all_is_as_it_was(no_gpu):
    backend = find_backend()
    assert backend.device == CPU
    assert backend.renderer == ("native" if native.available() else "reference")
    assert find_backend("reference", "auto").device == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_cuda_is_refused(no_gpu, name):
    with pytest.raises(InputError, match=f"--device {name} cannot be used: .*(without CUDA|finds no GPU)"):
        find_backend("auto", name)


def test_a_gpu_too_old_for_triton_is_refused(gpus, installed):
    gpus((6, 0))
    installed(*TRITON)
    with pytest.raises(InputError, match="Tesla P100 has compute capability 6.0, and Triton needs 7.0 or more"):
        find_backend("auto", "cuda")
    assert find_backend().device == CPU


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus()
    with pytest.raises(InputError, match=r"there is no GPU 2, only 2 \(cuda:0 to cuda:1\)"):
        find_backend("auto", "cuda:2")


def test_a_gpu_and_triton_are_chosen_together(gpus, installed):
    gpus()
    installed(*TRITON)
    assert (find_backend().renderer, find_backend().device) == ("triton", torch.device("cuda"))
    assert find_backend("auto", "cuda:1").device == torch.device("cuda:1")
    assert find_backend("auto", "cpu").device == CPU
    if native.available():
        assert find_backend("native").device == CPU
    assert find_backend("reference").device == CPU
    assert find_backend("reference", "cuda").device == torch.device("cuda")
    assert renderer_in_use() == ("triton", "there is a GPU, and triton is installed")


def test_a_gpu_without_triton_is_left_alone_unless_it_is_asked_for(gpus, installed):
    gpus()
    installed("triton")
    assert find_backend().device == CPU
    with pytest.raises(InputError, match=r"nothing that is installed renders on cuda: .*splatopt\[gpu\]"):
        find_backend("auto", "cuda")


def test_a_renderer_and_a_device_must_go_together(gpus, installed):
    gpus()
    installed(*TRITON, "gsplat")
    for renderer, device in (("triton", "cpu"), ("gsplat", "cpu"), ("native", "cuda")):
        with pytest.raises(InputError, match=f"the {renderer} renderer does not compute on {device}, only on"):
            find_backend(renderer, device)
    assert find_backend("gsplat").device == torch.device("cuda")


def test_a_renderer_that_is_not_installed_says_what_to_install(gpus, installed):
    gpus()
    installed()
    for renderer, extra in (("triton", "gpu"), ("gsplat", "gsplat")):
        with pytest.raises(InputError, match=rf"not installed: `pip install 'splatopt\[{extra}\]'`"):
            make_renderer(renderer)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_a_device_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="--device must be auto, cpu, cuda or cuda:N"):
        devices.check_device_name(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_this_machines_gpu_is_found():
    assert devices.find_device("cuda").type == "cuda"
    assert devices.cuda_problem(f"cuda:{torch.cuda.device_count()}") is not None
