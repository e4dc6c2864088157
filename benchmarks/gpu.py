"""All that is to be shown on a GPU, in one program: ``python -m benchmarks.gpu --data ../shared/data``.

It first compiles everything at once: tests marked ``gpu`` (every kernel against the float64 reference), gsplat where
it is installed, and the kernels that fox_960 will ask for. Then it times forward, forward and backward, whole Adam
steps, Jacobian products, the exact diagonal and tr2's step on the garden load and on 1 and 4 million Gaussians at
1920x1080, against gsplat in the same process and against the floor counted from bytes and operations; the learned
step on the garden with 8 views; last, held-out PSNR against seconds on fox_960. Medians of CUDA events. It ends within
ten minutes; what there was no time for, what failed and what is not here is listed with the reason, and the rest is
measured all the same. ``--rehearse`` runs the same on a dozen Gaussians, on Triton's interpreter where there is no GPU
(``TRITON_INTERPRET=1``), to show that the program works; none of its numbers means anything.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_passes import Bench, Limits, LoadQuestions, Question, device_limits
from benchmarks.loads import Load, garden, made_up
from benchmarks.measurement import Measurement
from splatopt.core.devices import cuda_problem, is_installed
from splatopt.report.scene_page import read_metrics

LIMIT = 560.0
"""Seconds after which nothing new is begun."""

COMPILING = 200.0
"""Seconds that checks and compilers get; they run side by side."""

FOX_SECONDS = (5, 10, 20, 30)
"""When fox_960's test views are scored; the last one ends the training. Unit: seconds of training."""

FOX_OPTIMIZERS = ("adam", "tr2", "block-gn")
FOX_RESERVE = 1.0 * FOX_SECONDS[-1] + 20
"""Seconds that one run takes with loading and scoring."""

ROOT = Path(__file__).resolve().parents[1]

_GSPLAT = (
    "import torch; from benchmarks.gpu_passes import Gsplat, on_device; from benchmarks.loads import made_up; "
    "Gsplat(on_device(made_up(1000, 64, 48, 60.0), torch.device('cuda'))).step()"
)


@dataclass
class Findings:
    """What was measured, and why the rest was not.

    Attributes:
        measured: In the order in which it was.
        missing: A question and a reason.
        began: Of the clock that does not go back.
    """

    measured: list[Measurement] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return LIMIT - (time.perf_counter() - self.began)

    def ask(self, question: Question, reserve: float = 0.0) -> None:
        """Ask one question, if there is time; whatever goes wrong is noted.

        Args:
            question: Its name and what answers it.
            reserve: Seconds that must be left.
        """
        name, answer = question
        if self.left < reserve:
            self.missing.append((name, "no time was left"))
            return
        try:
            for measurement in answer():
                self.measured.append(measurement)
        except Exception as error:  # one question that fails must not end the others
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            self.missing.append((name, f"{type(error).__name__}: {reason}"[:300]))
            if torch.cuda.is_available():
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()


# ---------------------------------------------------------------------- compilers and checks


class Compiling:
    """A program that runs beside others, and is ended when its time is up."""

    def __init__(self, command: list[str]) -> None:
        """Begin; what it prints goes to a file, so that it never waits for a reader."""
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the answer is read
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=self._output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def end(self, seconds: float) -> tuple[int | None, str]:
        """Return its exit code, None where it had to be ended, and the end of what it printed."""
        code: int | None = None
        try:
            code = self._process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            # Compilers that it started are of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._output.seek(0)
        with self._output:
            return code, self._output.read()[-4000:].strip()


def compile_all(data: Path, findings: Findings) -> tuple[bool, tuple[str, ...]]:
    """Check and compile everything, side by side; return whether gsplat is ready, and fox_960 for which optimizers."""
    python = [sys.executable, "-m"]
    tests = ["tests/kernels", "tests/raster/test_gpu.py"]
    checks = Compiling([*python, "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", *tests])
    gsplat = Compiling([sys.executable, "-c", _GSPLAT]) if is_installed("gsplat") else None
    has_fox = (data / "fox_960").is_dir()
    with tempfile.TemporaryDirectory() as folder:
        # Every degree of the harmonics is another kernel; so compiling does not count among the seconds of training.
        short = ["--steps", "31", "--sh-interval", "10"]
        foxes = {
            name: Compiling(fox_command(data, name, Path(folder) / name, short))
            for name in (FOX_OPTIMIZERS if has_fox else ())
        }
        began = time.perf_counter()

        def left() -> float:
            return COMPILING - (time.perf_counter() - began)

        findings.ask(("checks", lambda: _checked(*checks.end(left()))))
        gsplat_ready = _noted(findings, "gsplat", gsplat, left, "it is not installed: pip install 'splatopt[gsplat]'")
        if not has_fox:
            findings.missing.append(("fox_960", f"{data / 'fox_960'} is not there"))
        ready = [name for name, program in foxes.items() if _noted(findings, f"fox_960.{name}", program, left, "")]
    return gsplat_ready, tuple(ready)


def _checked(code: int | None, output: str) -> Iterator[Measurement]:
    if code != 0:
        print(output)
    if code is None:
        raise TimeoutError(f"the tests marked gpu did not end within {COMPILING:.0f} s")
    yield Measurement("checks.failed", float(code != 0), "0 is none", "lower", 0.5)


def _noted(findings: Findings, name: str, program: Compiling | None, left: Callable[[], float], absent: str) -> bool:
    """Return whether a program came to a good end; note why it did not."""
    if program is None:
        findings.missing.append((name, absent))
        return False
    code, output = program.end(left())
    if code != 0:
        last = output.splitlines()[-1] if output else "it printed nothing"
        reason = f"not compiled within {COMPILING:.0f} s" if code is None else last
        findings.missing.append((name, reason[:300]))
    return code == 0


# ---------------------------------------------------------------------- fox_960


def fox_command(data: Path, optimizer: str, out: Path, more: Iterable[str]) -> list[str]:
    """Return the command that trains on fox_960."""
    command = [sys.executable, "-m", "splatopt", "train", str((data / "fox_960").resolve())]
    return [*command, "--optimizer", optimizer, "--renderer", "triton", "--out", str(out), *more]


def fox(data: Path, optimizer: str) -> Iterator[Measurement]:
    """Held-out PSNR of fox_960 after so many seconds of training, and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        more = ["--steps", "7000", "--max-seconds", str(FOX_SECONDS[-1])]
        more += ["--eval-at-seconds", *(str(seconds) for seconds in FOX_SECONDS[:-1])]
        program = Compiling(fox_command(data, optimizer, out, more))
        code, output = program.end(2 * FOX_SECONDS[-1] + 30)
        if code != 0:
            raise RuntimeError(output or f"it did not end ({code})")
        for line in read_metrics(out / "metrics.jsonl"):
            if "test_psnr" in line:
                yield _fox_score(optimizer, line["seconds"], line["step"], line["test_psnr"])
        end = json.loads((out / "eval.json").read_text())
        yield _fox_score(optimizer, end["seconds"], end["steps"], end["psnr"])


def _fox_score(optimizer: str, seconds: float, step: int, psnr: float) -> Measurement:
    return Measurement(f"fox_960.{optimizer}.{seconds:.0f}_s.step_{step}", psnr, "dB", "higher")


# ---------------------------------------------------------------------- the program


def measure(data: Path, bench: Bench, *, rehearse: bool) -> Findings:
    """Everything, as long as there is time."""
    findings = Findings()
    gsplat, foxes = (False, ()) if rehearse else compile_all(data, findings)

    @functools.cache
    def limits() -> Limits:
        return device_limits(bench)

    fox_reserve = FOX_RESERVE * len(foxes)
    for key, make, learned in loads(data, findings, rehearse=rehearse):
        asked = LoadQuestions(make, key, bench, limits)
        for question in asked.questions(gsplat=gsplat, learned=learned):
            findings.ask(question, fox_reserve)
        asked.release()
    for optimizer in foxes:
        findings.ask((f"fox_960.{optimizer}", functools.partial(fox, data, optimizer)), FOX_RESERVE)
    return findings


def loads(data: Path, findings: Findings, *, rehearse: bool) -> Iterator[tuple[str, Callable[[], Load], bool]]:
    """What is timed, made when its turn comes, and whether the learned step is timed on it."""
    if rehearse:
        yield "12 Gaussians 24x20", lambda: made_up(12, 24, 20, 60.0), True
        return
    if (data / "garden_workload.npz").is_file():
        yield "garden 648x420", lambda: garden(data), True
    else:
        findings.missing.append(("garden", f"{data / 'garden_workload.npz'} is not there"))
        yield "138,766 Gaussians 648x420", lambda: made_up(138_766, 648, 420, 200.0, sh_degree=0), True
    yield "1,000,000 Gaussians 1920x1080", lambda: made_up(1_000_000, 1920, 1080, 200.0), False
    yield "4,000,000 Gaussians 1920x1080", lambda: made_up(4_000_000, 1920, 1080, 60.0), False


def show(findings: Findings, title: str) -> None:
    """Print the table, and what is missing from it."""
    table = Table("what", "value", "unit", "bar", title=title)
    for entry in findings.measured:
        bar = "" if entry.bar is None else f"{entry.bar:g} {'reached' if entry.reached else 'missed'}"
        table.add_row(entry.name, f"{entry.value:.4g}", entry.unit, bar)
    console = Console(width=110)
    console.print(table)
    for name, reason in findings.missing:
        console.print(f"not measured: {name}: {reason}", markup=False, highlight=False)


def refuse(problem: str) -> None:
    """End with one sentence."""
    print(f"benchmarks.gpu: {problem}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real scenes")
    parser.add_argument("--rehearse", action="store_true", help="a dozen Gaussians, no checks, no scene")
    arguments = parser.parse_args()
    problem = cuda_problem()
    if problem and not arguments.rehearse:
        refuse(f"{problem}, and all of it is timed on one")
    if importlib.util.find_spec("triton") is None:
        refuse("Triton is not installed: pip install 'splatopt[gpu]'")
    device = torch.device("cuda" if problem is None else "cpu")
    bench = Bench(device, 1, 0, 1, 1, 2) if arguments.rehearse else Bench(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: a rehearsal, no number counts"
    findings = measure(arguments.data, bench, rehearse=arguments.rehearse)
    show(findings, f"{name}, PyTorch {torch.__version__}")
    failed = [entry.name for entry in findings.measured if entry.name == "checks.failed" and not entry.reached]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
