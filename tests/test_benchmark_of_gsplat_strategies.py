"""The benchmark of gsplat's own strategies: its loop, its order of views, and that it goes on."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.data import load_capture, make_capture

pytest.importorskip("gsplat", reason="gsplat is not installed")
from benchmarks import gsplat_strategies
from benchmarks.gsplat_strategies import Cell, StrategyOptions, start, table, train, views_in_turn

from splatopt.torch_api import gsplat_on_cpu


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("strategy", ["default", "mcmc"])
@pytest.mark.parametrize("optimizer", ["torch-adam", "sign-tr", "tr2"])
def test_a_run_scores_four_moments_and_goes_up(strategy: str, optimizer: str, tmp_path: Path) -> None:
    capture = load_capture(make_capture(tmp_path / "capture", views=4, width=32, height=24, points=60))
    options = StrategyOptions(tmp_path, tmp_path, steps=8, max_gaussians=70)
    with gsplat_on_cpu():
        found = train(capture, options, Cell(strategy, optimizer, 0))
    assert list(found["psnr"]) == ["0", "2", "4", "6", "8"]
    assert found["psnr"]["8"] > found["psnr"]["0"]
    assert found["finite"]
    assert found["gaussians"][0] == len(start(capture, mcmc=False)["means"])


def test_mcmc_starts_small_and_half_opaque(tmp_path: Path) -> None:
    capture = load_capture(make_capture(tmp_path / "capture", views=2, width=16, height=16, points=20))
    plain, small = (start(capture, mcmc=mcmc) for mcmc in (False, True))
    torch.testing.assert_close(small["scales"].exp(), 0.1 * plain["scales"].exp())
    assert torch.allclose(small["opacities"].sigmoid(), torch.tensor(0.5))
    assert torch.allclose(plain["opacities"].sigmoid(), torch.tensor(0.1))


def test_every_view_comes_once_before_any_comes_again() -> None:
    order = list(itertools.islice(views_in_turn((3, 5, 8), 0), 9))
    assert all(sorted(order[i : i + 3]) == [3, 5, 8] for i in (0, 3, 6))
    assert order == list(itertools.islice(views_in_turn((3, 5, 8), 0), 9))


def test_finished_runs_are_not_taken_again_and_other_settings_are_refused(tmp_path, monkeypatch, capsys) -> None:
    folder = make_capture(tmp_path / "capture", views=2, width=16, height=16, points=20)
    found, asked = {"psnr": {"0": 9.0, "8": 20.5}, "gaussians": [20, 1234], "seconds": 3.2, "finite": True}, []
    monkeypatch.setattr(gsplat_strategies, "train", lambda capture, options, cell: asked.append(cell) or found)
    words = ["gsplat_strategies", str(folder), "--out", str(tmp_path / "out"), "--seeds", "4", "--steps"]
    for optimizers in (["tr2"], ["tr2", "adam"]):
        monkeypatch.setattr(sys, "argv", [*words, "8", "--strategies", "mcmc", "--optimizers", *optimizers])
        gsplat_strategies.main()
    assert asked == [Cell("mcmc", "tr2", 4), Cell("mcmc", "adam", 4)]
    assert "| mcmc | tr2 | 4 | 9.00 | 20.50 | 20 → 1,234 | yes | 3 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "9", "--strategies", "mcmc", "--optimizers", "tr2"])
    with pytest.raises(InputError, match="other settings"):
        gsplat_strategies.main()


def test_a_run_that_broke_down_is_said_loudly() -> None:
    found = {"psnr": {"0": 9.0}, "gaussians": [1, 1], "seconds": 0.0, "finite": False}
    assert "| NO |" in table([(Cell("default", "tr2", 0), found)])
