"""Every example runs as it stands, from another folder, and shows what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import splatopt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(splatopt.__file__).resolve().parents[1]


def run(name: str, folder: Path, *arguments: str) -> str:
    """Output of an example that ran in ``folder``, with the package that is tested here."""
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(SOURCE)!r}); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(ROOT / "examples" / name), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_first_order(tmp_path: Path):
    scores = re.findall(r"^(\w+): ([\d.]+) -> ([\d.]+) dB in ", run("first_order.py", tmp_path), re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam", "lion"]
    assert scores[0][1] == scores[1][1], "both begin at the same cloud"
    assert all(float(after) > float(before) + 4 for _, before, after in scores)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_trust_region(tmp_path: Path):
    scores = re.findall(r"^([\w-]+): ([\d.]+) -> ([\d.]+) dB in ", run("trust_region.py", tmp_path), re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam", "sign-tr", "tr2", "block-gn"]
    assert len({before for _, before, _ in scores}) == 1, "all begin at the same cloud"
    assert all(float(after) > float(before) + 4 for _, before, after in scores)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_hessian_diagonal(tmp_path: Path):
    scores = re.findall(r"^([\w-]+): ([\d.]+) -> ([\d.]+) dB in ", run("hessian_diagonal.py", tmp_path), re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam", "adam-tuned", "esgd", "adahessian", "sophia", "sophia-h"]
    assert len({before for _, before, _ in scores}) == 1, "all begin at the same cloud"
    assert all(float(after) > float(before) + 4 for _, before, after in scores)


def test_levenberg_marquardt(tmp_path: Path):
    output = run("levenberg_marquardt.py", tmp_path)
    scores = re.findall(r"^([\w:,]+): ([\d.]+) -> ([\d.]+) dB in ", output, re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam:150", "adam:150,lm:8", "lm:8"]
    assert len({before for _, before, _ in scores}) == 1, "all begin at the same cloud"
    assert all(float(after) > float(before) + 4 for _, before, after in scores)
    assert float(scores[1][2]) > float(scores[0][2]) + 1, "the second stage adds to the first"


def test_learned(tmp_path: Path):
    scores = re.findall(r"^([\w-]+): ([\d.]+) -> ([\d.]+) dB in ", run("learned.py", tmp_path), re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam", "adam-searched", "learned"]
    assert len({before for _, before, _ in scores}) == 1, "all begin at the same cloud"
    adam, searched, learned = (float(after) for _, _, after in scores)
    assert searched > adam + 2
    assert learned > searched + 0.5


@pytest.mark.slow
def test_neural_field(tmp_path: Path):
    out = run("neural_field.py", tmp_path)
    scores = re.findall(r"^(\w+): ([\d.]+) -> ([\d.]+) dB in ", out, re.MULTILINE)
    assert [name for name, _, _ in scores] == ["adam", "esgd"]
    assert scores[0][1] == scores[1][1], "both begin at the same field"
    assert float(scores[1][2]) > float(scores[0][2]) > float(scores[0][1]) + 4
    first, last = re.search(r"loop: ([\d.]+) -> ([\d.]+)", out).groups()
    assert float(last) < 0.05 * float(first)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_gsplat_loop(tmp_path: Path):
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    out = run("gsplat_loop.py", tmp_path)
    rows, grown, before, after = re.search(r"(\d+) -> (\d+) Gaussians, ([\d.]+) -> ([\d.]+) dB", out).groups()
    assert int(grown) > int(rows)
    assert float(after) > float(before) + 4
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_scene_optimizer(tmp_path: Path):
    losses = re.findall(r"^([\w-]+): loss ([\d.]+) -> ([\d.]+)$", run("scene_optimizer.py", tmp_path), re.MULTILINE)
    assert [name for name, _, _ in losses] == ["adam", "sign-tr", "learned", "tr2", "block-gn"]
    after = {name: float(last) for name, _, last in losses}
    assert all(float(last) < float(first) for _, first, last in losses)
    assert max(after, key=after.__getitem__) == "adam", "all others are ahead at equal steps"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_siren_esgd(tmp_path: Path):
    scores = re.findall(r"^step (\d+): ([\d.]+) dB$", run("siren_esgd.py", tmp_path, "60"), re.MULTILINE)
    assert [step for step, _ in scores] == ["1", "60"]
    assert float(scores[1][1]) > float(scores[0][1]) + 6


def test_lightning_esgd(tmp_path: Path):
    pytest.importorskip("pytorch_lightning", reason="PyTorch Lightning is not installed")
    steps, first, last = re.search(
        r"(\d+) steps, loss ([\d.]+) -> ([\d.]+)", run("lightning_esgd.py", tmp_path)
    ).groups()
    assert int(steps) == 8 * 16, "Lightning counts the steps"
    assert float(last) < 0.2 * float(first)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_every_example_has_its_test():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {f"test_{name}" for name in names} <= set(globals())
