"""The ranking that the benchmark of the zoo makes of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.zoo import cells, command, table

pytest.importorskip("pytorch_optimizer")


def test_every_name_runs_once_on_an_image_and_at_every_factor_on_a_scene() -> None:
    found = list(cells((1.0, 3.0)))
    assert len(found) == len(set(found))
    assert sum(name == "zoo:adabelief" for _, name, _ in found) == 3
    assert sum(name == "block-gn" for _, name, _ in found) == 1
    words = command("a scene", "zoo:lion", 3.0, Path("fox"))
    assert words[words.index("--zoo.rate-factor") + 1] == "3"
    assert "--zoo.rate-factor" not in command("an image", "zoo:lion", 1.0, Path("image.png"))


def test_the_best_factor_counts_and_what_failed_stands_last() -> None:
    results = [
        {"subject": "a scene", "optimizer": "zoo:b", "factor": 1.0, "psnr": 20.0, "seconds": 2.0},
        {"subject": "a scene", "optimizer": "zoo:a", "factor": 1.0, "failed": "not done after 120 s"},
        {"subject": "a scene", "optimizer": "zoo:b", "factor": 3.0, "psnr": 22.0, "seconds": 2.5},
        {"subject": "a scene", "optimizer": "tr2", "factor": 1.0, "psnr": 21.0, "seconds": 3.0},
        {"subject": "an image", "optimizer": "zoo:b", "factor": 1.0, "psnr": 40.0, "seconds": 1.0},
    ]
    lines = table(results, "a scene").splitlines()
    assert lines[4:7] == [
        "| 1 | `zoo:b` | 3 | 22.00 | 2.5 |",
        "| 2 | `tr2` | 1 | 21.00 | 3.0 |",
        "| 3 | `zoo:a` | 1 | | |",
    ]
    assert "- `zoo:a`: not done after 120 s" in lines
