"""A suite small enough that all its cells take a moment, and results made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splatopt.bench.cells import Cell
from splatopt.bench.measure import run_cell
from splatopt.bench.results import Results
from splatopt.bench.runner import Outcome, SuiteFolder
from splatopt.bench.suite import Suite, make_suite
from splatopt.core.checks import InputError
from splatopt.runs.folder import write_json
from train.toys import ToyRenderer

HOSTILE = '<script>alert(1)</script>|*_`\\&%$#{}~^ "x"'
"""A text that means something to every format that it is put into."""


def toy_suite(capture: Path, **changes: Any) -> Suite:
    values = {
        "seeds": 2,
        "points": [0, 1, 5, 10],
        "seconds": [],
        "train": {"steps": 12, "sh_interval": 4},
        "scenes": [{"path": str(capture), "name": "toy"}],
        "optimizers": [{"name": "adam"}, {"name": "adam", "label": "slow", "options": {"means_rate": 1e-6}}],
    }
    return make_suite(values | changes, "the test", Path(), "Toy suite")


def launch_here(suite_folder: SuiteFolder, cell: Cell, lpips_weights: str | None) -> Outcome:
    """Run a cell in this process, drawn by the toy renderer."""
    try:
        return Outcome(cell, run_cell(cell, renderer=ToyRenderer()), None)
    except InputError as error:
        suite_folder.state.mkdir(parents=True, exist_ok=True)
        write_json(suite_folder.request(cell).with_suffix(".failed"), {"reason": str(error)})
        return Outcome(cell, {}, str(error))


def numbers(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What must be the same in two runs of a cell."""
    return [(point["step"], point["psnr"], point["ssim"], point["gaussians"]) for point in record["points"]]


def made_cell(label: str, seed: int, curve: list[tuple[int, float]], **changes: Any) -> dict[str, Any]:
    """A cell of a results file with a curve of (step, PSNR), a tenth of a second a step."""
    points = [
        {
            "step": step,
            "seconds": step / 10,
            "psnr": psnr,
            "ssim": psnr / 50,
            "gaussians": 100,
            "peak_memory_mb": 300.0,
            "planned": True,
        }
        for step, psnr in curve
    ]
    return {
        "name": f"toy.{label}.seed{seed}",
        "scene": "toy",
        "setting": "",
        "label": label,
        "seed": seed,
        "source": "toy",
        "protocol": {"name": "dense", "rule": "a rule"},
        "config": {"optimizer": "adam", "steps": curve[-1][0] if curve else 0},
        "status": "done",
        "environment": {"splatopt": "0.1.0", "torch": "2"},
        "split": "every-8th-test",
        "scoring": "PSNR and SSIM",
        "warnings": [],
        "points": points,
    } | changes


def made_results(*cells: dict[str, Any], title: str = "Made up", reference: str = "first") -> Results:
    source = {"title": title, "command": "splatopt bench made.toml", "date": "2020-01-01 00:00 UTC"}
    return Results(title, reference, (source,), cells)


def two_labels() -> Results:
    """Two entries, two seeds: the second is better, and drops at its end."""
    return made_results(
        made_cell("first", 0, [(0, 5.0), (1, 6.0), (10, 16.0), (100, 20.0)]),
        made_cell("first", 1, [(0, 5.0), (1, 6.0), (10, 16.0), (100, 22.0)]),
        made_cell("second", 0, [(0, 5.0), (1, 8.0), (10, 20.0), (100, 24.0)]),
        made_cell("second", 1, [(0, 5.0), (1, 8.0), (10, 26.0), (100, 23.0)]),
    )
