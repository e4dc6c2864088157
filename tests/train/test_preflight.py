"""Memory is counted before a run and near what it takes; where it runs out, the run goes on or says how much."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.processes import Processes
from splatopt.data import CaptureOptions, load_capture, make_capture
from splatopt.optim.zoo import ZooOptions
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.types import RenderOptions
from splatopt.runs.events import Warned
from splatopt.runs.resumable import OutOfMemoryError
from splatopt.scene.initialization import start_random
from splatopt.train.config import TrainConfig
from splatopt.train.levels import parse_levels
from splatopt.train.loop import train
from splatopt.train.pacing import Pacing
from splatopt.train.planning import clock_from_now
from splatopt.train.preflight import FACTOR, MemoryEstimate, count_tile_pairs, image_bytes, measure_optimizer
from splatopt.train.process_context import ProcessContext
from splatopt.train.setup import starting_cloud
from train.toys import Listener, ToyRenderer

needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    make_capture(folder / "capture", seed=0, views=5, width=256, height=192, points=60)
    return folder


@pytest.fixture(scope="module")
def measured(scene) -> dict[str, tuple[int, int]]:
    """Bytes that were estimated and taken, by optimizer."""
    worker = str(Path(__file__).with_name("memory_worker.py"))
    ended = subprocess.run(
        [sys.executable, worker, str(scene), "20000", "adam", "block-gn"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found = [line.split() for line in ended.stdout.splitlines()]
    return {words[0]: (int(words[1]), int(words[2])) for words in found if words[0] in ("adam", "block-gn")}


@needs_native
@pytest.mark.parametrize("optimizer", ["adam", "block-gn"])
def test_the_estimate_is_near_what_a_run_takes(measured, optimizer):
    estimate, taken = measured[optimizer]
    assert 1 / FACTOR < taken / estimate < FACTOR


@needs_native
def test_pairs_of_gaussian_and_tile_are_near_the_renderers(scene):
    capture = load_capture(scene / "capture", CaptureOptions())
    cloud = start_random(capture, 5000, sh_degree=0, generator=torch.Generator().manual_seed(0))
    renderer, entries = NativeRenderer(1), []
    for camera in capture.cameras:
        renderer.draw(cloud, camera, RenderOptions())
        entries.append(renderer.rasterizer.entry_count)
    estimate = count_tile_pairs(cloud, capture.cameras, TrainConfig.of("x"))
    assert 0.7 < estimate / max(entries) < 1.5


@needs_native
def test_what_optimizers_keep_is_counted_per_gaussian(scene):
    capture = load_capture(scene / "capture", CaptureOptions())
    cloud = start_random(capture, 100, sh_degree=3, generator=torch.Generator().manual_seed(0))
    found = {
        name: measure_optimizer(name, TrainConfig.of("x", optimizer=name), cloud, NativeRenderer(1), on_host=False)
        for name in ("adam", "tr2", "block-gn", "lm")
    }
    # Two means of 59 numbers, and a copy of the largest tensor of 45.
    assert found["adam"].row_bytes == 4 * (2 * 59 + 45)
    # Mean, curvature and age; the diagonal's buffer; two copies.
    assert found["tr2"].row_bytes == pytest.approx(4 * (2 * 59 + 59 + 2 * 59), abs=8)
    # Mean, blocks of 105, age, multiplier and largest size; the buffers of blocks and diagonal; two copies.
    assert found["block-gn"].row_bytes == 4 * (59 + 105 + 3 + 105 + 45 + 2 * 59)
    assert found["lm"].row_bytes > 16 * 4 * 59
    assert [found[name].residuals for name in found] == [False, False, True, True]


@needs_native
@pytest.mark.parametrize(("name", "kept", "copies"), [("sgd", 0, 1), ("lion", 1, 1), ("adan", 4, 1), ("adai", 3, 2)])
def test_what_others_wrote_is_counted_by_trying_it(scene, name, kept, copies):
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    capture = load_capture(scene / "capture", CaptureOptions())
    cloud = start_random(capture, 400, sh_degree=3, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in cloud.tensors.items()}
    name = f"zoo:{name}"
    found = measure_optimizer(name, TrainConfig.of("x", optimizer=name), cloud, NativeRenderer(1), on_host=False)
    assert kept * 236 <= found.row_bytes <= (kept + copies) * 236 + 4 * 45 * 2
    averaged = TrainConfig.of("x", optimizer=name, average=20.0)
    more = measure_optimizer(name, averaged, cloud, NativeRenderer(1), on_host=False)
    assert more.row_bytes == pytest.approx(found.row_bytes + 240, abs=240), "the last iterate, and its age"
    assert all(torch.equal(value, before[key]) for key, value in cloud.tensors.items())


@needs_native
@pytest.mark.parametrize("count", [60, 3000])
def test_a_matrix_over_all_gaussians_is_refused(scene, count):
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    capture = load_capture(scene / "capture", CaptureOptions())
    cloud = start_random(capture, count, sh_degree=3, generator=torch.Generator().manual_seed(0))
    said = f"zoo:kron works with a matrix that has a row and a column for each of the {count:,} Gaussians; take"
    square = ZooOptions(settings=("memory_save_mode=null",))  # not what scenes have where nobody says so
    config = TrainConfig.of("x", optimizer="zoo:kron", optimizer_options=square)
    with pytest.raises(InputError, match=said):
        measure_optimizer("zoo:kron", config, cloud, NativeRenderer(1), on_host=False)


def test_too_little_memory_is_refused_before_anything_is_written(settings):
    config = settings(max_memory=1e-5)
    said = r"training needs about 0\.0\d+ GiB of memory \(.*parameters 0\.000.*\), and --max-memory allows 1e-05; take"
    with pytest.raises(InputError, match=said):
        train(config, renderer=ToyRenderer())
    assert not config.folder.exists()


def test_photographs_of_planned_levels_are_counted(scene):
    capture = load_capture(scene / "capture")
    capture = replace(capture, cameras=tuple(camera.resized(1600, 1200) for camera in capture.cameras))
    told = TrainConfig.of(str(scene / "capture"), minutes=1.0, recipe="learned-no-growth")
    config = told.resolved("toy", (0.0, 0.0, 0.0))
    cloud = starting_cloud(config, capture, torch.Generator())
    context = ProcessContext(torch.device("cpu"), capture, Processes())
    planned = Pacing(clock_from_now(), None, context).begin(config, capture, cloud, ToyRenderer())
    assert [level.factor for level in parse_levels(planned.schedule.levels)] == [4, 2]
    cameras = [capture.cameras[view] for view in capture.split.train]
    whole = len(cameras) * 3 * 1600 * 1200
    assert image_bytes(config, cameras) == whole
    assert image_bytes(planned, cameras) == whole + whole // 4


def test_a_sentence_names_the_largest_first():
    estimate = MemoryEstimate({"gradient": 1 << 29, "parameters": 3 << 30, "residuals": 0})
    assert estimate.sentence == "training needs about 3.50 GiB of memory (parameters 3.00, gradient 0.50)"


# ---------------------------------------------------------------------- running out


class Exhausted(ToyRenderer):
    """Has room for ``room`` views of a step, until a step is over."""

    def __init__(self, room: int, from_call: int = 0) -> None:
        super().__init__()
        self.room, self.from_call, self.held = room, from_call, 0

    def accumulate_gradient(self, gaussians, problem, into, seen, observed=None):
        self.held = 1 if into.overwrite else self.held + 1
        if self.held > self.room and self.calls >= self.from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().accumulate_gradient(gaussians, problem, into, seen)


def test_a_step_that_does_not_fit_is_taken_in_pieces_and_said_once(settings):
    listener = Listener()
    cramped = train(settings("cramped", steps=6, view_batch=4), [listener], renderer=Exhausted(1))
    roomy = train(settings("roomy", steps=6, view_batch=4), renderer=ToyRenderer())
    for name, value in cramped.cloud.tensors.items():
        torch.testing.assert_close(value, roomy.cloud.tensors[name], rtol=1e-4, atol=1e-5, msg=name)
    (told,) = listener.of(Warned)
    assert told.message.startswith("memory ran out over the views of a step; its views are now taken at most 2 at a")


def test_one_view_that_does_not_fit_ends_the_run_with_its_checkpoint(settings):
    config = settings(steps=20)
    with pytest.raises(OutOfMemoryError) as caught:
        train(config, renderer=Exhausted(0, from_call=9))
    sentence = str(caught.value)
    assert sentence.startswith("memory ran out over a single view in step 10: training needs about 0.0")
    assert "step-000007 is kept; go on with:" in sentence
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 7
    assert train(settings(resume=True, steps=20), renderer=ToyRenderer()).steps == 20
