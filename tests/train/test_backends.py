"""Training with the native renderer and with the reference comes to the same end."""

from __future__ import annotations

import pytest
import torch

from splatopt.core import native
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from train.toys import make_toy_capture

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


def test_200_steps_end_within_two_hundredths_of_a_decibel(tmp_path):
    capture = make_toy_capture(tmp_path / "capture", width=28, height=20, points=80)
    results = {
        renderer: train(
            TrainConfig.of(str(capture), steps=200, out=tmp_path / renderer, renderer=renderer, sh_interval=50)
        )
        for renderer in ("native", "reference")
    }
    first, second = results["native"], results["reference"]
    assert first.before.psnr == pytest.approx(second.before.psnr, abs=1e-3)
    assert first.after.psnr == pytest.approx(second.after.psnr, abs=0.02)
    assert first.after.ssim == pytest.approx(second.after.ssim, abs=2e-3)
    assert first.after.psnr > first.before.psnr + 3


def test_pytorchs_threads_are_given_back(tmp_path):
    capture = make_toy_capture(tmp_path / "capture")
    threads = torch.get_num_threads()
    during = []
    train(
        TrainConfig.of(str(capture), steps=1, out=tmp_path / "run", renderer="native"),
        [lambda event: during.append(torch.get_num_threads())],
    )
    assert 1 in during
    assert torch.get_num_threads() == threads
