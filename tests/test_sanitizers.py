"""The native module under AddressSanitizer and UndefinedBehaviorSanitizer; ``make sanitize`` runs this file alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")
"""Loaded before Python, which is not built with them; the last one so that exceptions are seen."""

SELECTED = (
    "core/test_native_module.py",
    "core/test_instruction_sets.py",
    "optim/test_fused_steps.py",
    "meta/test_nearest_others.py",
    "meta/test_fused.py",
    "raster/test_losses.py",
    "raster/test_native.py",
    "raster/test_native_products.py",
    "torch_api/test_rasterization.py",
)

LEFT_OUT = """not (test_losses and reference) and not (test_fused and (small or clock or plain or tiny))
    and not (agree_with_the_reference
    and not (one_row or one_column or seventeen or giants or degree_0 or degree_3_at_1))
    and not (test_rasterization and (gradcheck or reference or moved_camera))"""
"""Images of one row, one column and odd sizes, giants, clouds without coefficients and networks of odd widths stay."""


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def compiler(tmp_path: Path) -> str:
    """A compiler that brings both sanitizers' libraries."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ here")
    for tool, found in (("cmake", find("cmake")), ("ninja", find("ninja"))):
        if found is None:
            pytest.skip(f"there is no {tool} here")
    if importlib.util.find_spec("nanobind") is None:
        pytest.skip("nanobind is not installed")
    for library in LIBRARIES:
        if not Path(library_path(compiler, library)).is_file():
            pytest.skip(f"{compiler} has no {library}")
    return compiler


def library_path(compiler: str, library: str) -> str:
    answer = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def built(compiler: str, folder: Path) -> Path:
    """Build the module with the sanitizers; return a folder with the package around it."""
    settings = ["-DSPLATOPT_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=None", f"-DPython_EXECUTABLE={sys.executable}"]
    settings += [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_MAKE_PROGRAM={find('ninja')}"]
    build = folder / "build"
    for words in (
        ["-S", str(ROOT), "-B", str(build), "-G", "Ninja", *settings],
        ["--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run([str(find("cmake")), *words], capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    package = folder / "package" / "splatopt"
    shutil.copytree(ROOT / "src" / "splatopt", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (module,) = build.glob("_native*.so")
    shutil.copy(module, package)
    return package.parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_pass_touches_what_it_must_not(compiler: str, tmp_path: Path) -> None:
    package = built(compiler, tmp_path)
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "LD_PRELOAD": " ".join(library_path(compiler, library) for library in LIBRARIES),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own are many
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # Shapes are not checked here, and reports go past pytest to us.
    words = ["-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
    words += ["-k", " ".join(LEFT_OUT.split())]
    words += [str(ROOT / "tests" / name) for name in SELECTED]
    code = f"import splatopt._native as m, sys, pytest; assert m.__file__.startswith({str(package)!r}), m.__file__; "
    code += f"sys.exit(pytest.main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert "runtime error" not in said, said[-6000:]
    assert "AddressSanitizer" not in said, said[-6000:]
    assert done.returncode == 0, said[-6000:]
    assert " passed" in said
