"""Fits know what memory they need before they begin; where it runs out, they say how to go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from splatopt.core import devices
from splatopt.core.camera import Camera
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.fields.image import ImageTask
from splatopt.fields.networks import Architecture
from splatopt.fields.occupancy import LabelledPoints, OccupancyTask
from splatopt.fields.radiance import FEATURES, Bounds, RadianceField, RadianceTask
from splatopt.fields.registry import make_field
from splatopt.fields.task import CHUNK
from splatopt.fit.config import FitConfig
from splatopt.fit.loop import fit_field
from splatopt.fit.preflight import check_field_memory
from splatopt.optim.bridge import TorchOptimizer
from splatopt.optim.dry_run import CountedMemory
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS, LbfgsOptions
from splatopt.runs.resumable import OutOfMemoryError


@pytest.fixture
def settings(tmp_path):
    pixels = np.random.RandomState(0).rand(24, 24, 3) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photo.png")

    def make(**changes) -> FitConfig:
        base = {"field": "sine", "width": 24, "depth": 1, "batch": 100, "steps": 6, "threads": 1}
        return FitConfig.of(str(tmp_path / "photo.png"), **(base | {"out": tmp_path / "run"} | changes)).resolved()

    return make


def task(width: int, depth: int = 1, side: int = 24) -> ImageTask:
    generator = torch.Generator().manual_seed(0)
    field = make_field("sine", Architecture(2, 3, width, depth), generator, omega=30.0)
    return ImageTask(field, torch.rand(side, side, 3, generator=generator))


@pytest.mark.parametrize(
    "optimizer",
    [
        name if name in ("adam", "lbfgs", "kfac") else pytest.param(name, marks=pytest.mark.slow)
        for name in FIELD_OPTIMIZERS
    ],
)
def test_trying_leaves_the_field_as_it_is(settings, optimizer):
    fitted = task(24)
    before = {name: value.clone() for name, value in fitted.parameters.items()}
    torch.manual_seed(4)
    expected = torch.get_rng_state()
    batch = None if optimizer == "lbfgs" else 100
    needed = check_field_memory(settings(optimizer=optimizer, batch=batch), fitted, 100)
    assert needed.parts[f"optimizer {optimizer}"] > 0
    assert all(torch.equal(value, before[name]) for name, value in fitted.parameters.items())
    assert all(leaf.grad is None for leaf in fitted.leaves.values())
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_estimate_counts_state_and_examples(settings):
    fitted = task(64, depth=3, side=64)
    numbers = 4 * sum(value.numel() for value in fitted.parameters.values())
    adam, large = (
        check_field_memory(settings(width=64, depth=3, optimizer="adam"), fitted, batch) for batch in (100, 40_000)
    )
    assert adam.parts["optimizer adam"] == pytest.approx(2 * numbers, rel=0.01)
    # Each of four layers keeps what the sine is of, and makes the sine, which the next product keeps.
    examples = 40_000 * 4 * 64 * 4 * 2
    assert 1.0 < large.parts["steps"] / examples < 2.0
    assert large.sentence.startswith("fitting needs about 0.10 GiB of memory (steps 0.096, scoring 0.004")


def peak(work) -> int:
    with CountedMemory(2**40) as memory:
        work()
    return memory.peak


def test_the_estimate_counts_what_scoring_evaluates_at_once(settings):
    """Of rays with many samples in few batches, and of layers wider than usual."""
    cameras = [Camera(torch.eye(4, dtype=torch.float64), 32.0, 32.0, 32.0, 32.0, 64, 64, "one")] * 2
    photos = [torch.zeros(64, 64, 3, dtype=torch.uint8)] * 2
    fitted = []
    for width, samples in ((16, 256), (16, 4), (600, 16)):
        generator = torch.Generator().manual_seed(0)
        field = make_field("gaussian", Architecture(3, 1 + FEATURES, width, 1), generator)
        bounds = Bounds(torch.zeros(3), 1.0, 1.0, 2.0)
        views = {"train": (0,), "test": (1,), "samples": samples}
        fitted.append(RadianceTask(RadianceField(field, generator), cameras, photos, bounds, **views))
    assert [one.chunk for one in fitted] == [CHUNK // 256, CHUNK // 4, CHUNK // 16 // 3]
    needed = check_field_memory(settings(optimizer="adam", batch=4), fitted[0], 4)
    rendered = peak(lambda: fitted[0].render(1))
    assert rendered < needed.parts["scoring"] < 2 * rendered
    assert rendered > 3 * needed.parts["steps"]


def test_the_estimate_counts_the_grid_of_a_shape(settings):
    points = LabelledPoints(torch.zeros(50, 3), torch.zeros(50))
    field = make_field("sine", Architecture(3, 1, 8, 1), torch.Generator().manual_seed(0))
    shape = OccupancyTask(field, points, points)
    config = settings(optimizer="adam")
    small, large = (
        check_field_memory(replace(config, scoring=replace(config.scoring, resolution=side)), shape, 10)
        for side in (32, 64)
    )
    seen = peak(lambda: shape.grid(64))
    assert 4 * 64**3 <= seen < 1.1 * large.parts["mesh"]
    assert small.parts["mesh"] < large.parts["mesh"] / 4
    limited = config.changed(max_memory=large.total / 2**31)
    limited = replace(limited, scoring=replace(limited.scoring, resolution=64))
    with pytest.raises(InputError, match=r"mesh 0\.00.*take a smaller --batch, --width or --resolution"):
        check_field_memory(limited, shape, 10)


def test_the_estimate_counts_scoring_of_more_points_than_are_trained_on(settings):
    few, many = (LabelledPoints(torch.zeros(count, 3), torch.zeros(count)) for count in (50, 20_000))
    field = make_field("sine", Architecture(3, 1, 64, 1), torch.Generator().manual_seed(0))
    shape = OccupancyTask(field, few, many)
    config = settings(optimizer="adam")
    config = replace(config, scoring=replace(config.scoring, resolution=8))
    assert peak(shape.score) < 1.1 * check_field_memory(config, shape, 10).parts["scoring"]


def test_the_estimate_counts_the_whole_history_of_lbfgs(settings):
    fitted = task(24)
    numbers = 4 * sum(value.numel() for value in fitted.parameters.values())

    def kept(history: int, steps: int) -> float:
        options = LbfgsOptions(history=history)
        config = settings(optimizer="lbfgs", batch=None, optimizer_options=options, steps=steps)
        return check_field_memory(config, fitted, fitted.size).parts["optimizer lbfgs"] / numbers

    assert kept(30, 1000) == 64
    assert kept(30, 10) == 24
    assert kept(5, 1000) == 14


def test_too_little_memory_is_refused_before_anything_is_written(settings):
    needed = check_field_memory(settings(optimizer="adam"), task(24), 100).total / 2**30
    config = settings(max_memory=0.95 * needed, optimizer="adam")
    with pytest.raises(
        InputError, match=r"fitting needs about 0\.00.* GiB .*, and --max-memory allows 0\.00.*; take a"
    ):
        fit_field(config)
    with pytest.raises(InputError, match=r"adam needs 0\.0.* GiB .* may take 0\.000; take a smaller --batch"):
        fit_field(settings(max_memory=1e-5, optimizer="adam"))
    assert not config.folder.exists()
    with pytest.raises(InputError, match="--max-memory must be at least 0"):
        settings(max_memory=-1.0)


def test_products_of_whole_factors_are_refused_or_ordered_otherwise(settings):
    """kron asks for 256⁴ numbers where nothing orders its products."""
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    ordered = torch.backends.opt_einsum.enabled
    try:
        torch.backends.opt_einsum.enabled = False
        with pytest.raises(InputError, match=r"zoo:kron needs 16 GiB of memory at once.* may take 2\.00"):
            fit_field(settings(optimizer="zoo:kron", width=256, max_memory=2.0))
        assert not settings().folder.exists()
    finally:
        torch.backends.opt_einsum.enabled = ordered
    if not torch.backends.opt_einsum.is_available():
        pytest.skip("opt_einsum is not installed")
    assert fit_field(settings(optimizer="zoo:kron", width=256, max_memory=2.0, steps=2)).steps == 2


def test_a_limit_on_the_process_counts(monkeypatch):
    limits = []
    monkeypatch.setattr(devices.psutil.Process, "rlimit", lambda process, which: (limits[-1], 2**60))
    limits.append(2**60)
    free = devices.free_memory(torch.device("cpu"))
    used = devices.psutil.Process().memory_info().vms
    limits.append(used + 2**24)
    assert devices.free_memory(torch.device("cpu")) <= 2**24 < free
    limits.append(1000)
    assert devices.free_memory(torch.device("cpu")) == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
def test_memory_that_runs_out_ends_a_fit_with_its_checkpoint(settings, monkeypatch, error):
    step = TorchOptimizer.step

    def exhausted(self, batch, progress):
        if progress.step == 4 and progress.horizon == 6:
            raise error
        return step(self, batch, progress)

    monkeypatch.setattr(TorchOptimizer, "step", exhausted)
    config = settings(checkpoint_seconds=1e-9)
    with pytest.raises(OutOfMemoryError) as caught:
        fit_field(config)
    sentence = str(caught.value)
    assert sentence.startswith("memory ran out in step 5: fitting needs about 0.0")
    assert "take a smaller --batch, a smaller --width, or an optimizer that keeps less; step-000004 is kept" in sentence
    assert "go on with:" in sentence
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 4
    monkeypatch.setattr(TorchOptimizer, "step", step)
    assert fit_field(settings(resume=True)).steps == 6


def test_other_errors_keep_their_trace(settings, monkeypatch):
    def broken(self, batch, progress):
        raise RuntimeError("a bug")

    monkeypatch.setattr("splatopt.fit.loop.check_field_memory", lambda *_: None)
    monkeypatch.setattr(TorchOptimizer, "step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        fit_field(settings())
