"""Neural fields, Adam at its best rate against curvature: ``python -m benchmarks.fields QUESTION --out FOLDER``.

Each cell (field, optimizer, rate, seed) is a run of ``splatopt fit`` in a folder of its own. What is finished is not
done again and what was stopped goes on, so the same command may be typed as often as one likes. ``table`` writes
``table.md`` from whatever is there.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.field_curves import FIELDS, LEVELS, mean_sd, read_curve, read_curves, table_of
from splatopt.data.mesh import write_mesh
from splatopt.data.torus_knot import make_torus_knot
from splatopt.fit.config import FitConfig
from splatopt.fit.events import FitProgress
from splatopt.fit.loop import fit_field
from splatopt.fit.options import TaskKind
from splatopt.fit.sampler import ExampleSampler
from splatopt.optim.field_optimizers import field_options, find_field_optimizer
from splatopt.runs.folder import read_json
from splatopt.runs.records import read_metrics

ADAM_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SCORED_EPOCHS, SPARSE_EPOCHS = 60, 4
"""Images are scored after each of the first epochs, and after every so many later on: a score costs 0.4 s at 256²."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        target: What is fitted.
        field: Name of the field.
        optimizer: Name of the optimizer.
        rate: Its rate; None for the default.
        seed: Of the run.
    """

    target: str
    field: str
    optimizer: str
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        return f"{Path(self.target).stem}-{self.field}-{self.optimizer}{rate}-seed{self.seed}"


def test_image(name: str, side: int, folder: Path) -> Path:
    """Write a photo that comes with scikit-image, its middle square, at ``side``² pixels."""
    from PIL import Image
    from skimage import data

    path = folder / f"{name}-{side}.png"
    if not path.exists():
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        square = image.crop((left, top, left + edge, top + edge))
        square.resize((side, side), Image.Resampling.LANCZOS).save(path)
    return path


def torus_knot(folder: Path) -> Path:
    """Write the synthetic mesh."""
    path = folder / "knot.ply"
    if not path.exists():
        mesh = make_torus_knot()
        write_mesh(path, mesh.vertices, mesh.faces)
    return path


def run_cell(cell: Cell, base: FitConfig, out: Path) -> None:
    """Do one cell, or what is left of it."""
    folder = out / cell.name
    steps = read_json(folder / "eval.json").get("steps", 0)
    if epochs_done(folder) >= (base.schedule.epochs or 0) and steps >= (base.schedule.steps or 0):
        return
    options = None
    if cell.rate is not None:
        options = find_field_optimizer(cell.optimizer).entry.options(rate=cell.rate)
    config = base.changed(
        target=cell.target,
        field=cell.field,
        optimizer=cell.optimizer,
        optimizer_options=options,
        seed=cell.seed,
        out=folder,
        resume=(folder / "config.json").exists(),
    )
    print(f"cell {cell.name}", flush=True)
    fit_field(config, [FitProgress()] if sys.stderr.isatty() else [])


def epochs_done(folder: Path) -> float:
    """Epochs of the run in ``folder`` when it was last finished, -1 where it never was. A longer run may have begun."""
    end = read_json(folder / "eval.json")
    if "psnr" not in end and "iou" not in end:
        return -1.0
    return max(line["epoch"] for line in read_metrics(folder / "metrics.jsonl") if line["step"] <= end["steps"])


def compare(target: str, base: FitConfig, arguments: argparse.Namespace) -> None:
    """Find Adam's rate, and the others' where they are to be swept, on the first seed; then run all on every seed."""
    for field in arguments.fields:
        best = {"adam": best_rate(target, field, "adam", arguments.adam_rates, base, arguments)}
        for optimizer in arguments.optimizers:
            best[optimizer] = best_rate(target, field, optimizer, arguments.rates, base, arguments)
        for seed in arguments.seeds:
            for optimizer, rate in best.items():
                run_cell(Cell(target, field, optimizer, rate, seed), base, arguments.out)


def best_rate(
    target: str, field: str, optimizer: str, rates: Sequence[float], base: FitConfig, arguments: argparse.Namespace
) -> float | None:
    """Return the rate of the highest mean score over the last quarter of a sweep on the first seed; None for the usual.

    The last score alone may stand on a swing, and a mean over all would prefer haste. Where the sweep is shorter than
    a run (``--sweep-epochs``), the run of the best rate goes on from there.
    """
    usual = field_options(optimizer, field).rate
    short = base.changed(epochs=arguments.sweep_epochs) if arguments.sweep_epochs else base
    swept = {}
    for rate in rates:
        cell = Cell(
            target, field, optimizer, None if rate == usual and optimizer != "adam" else rate, arguments.seeds[0]
        )
        run_cell(cell, short, arguments.out)
        swept[rate] = read_curve(arguments.out / cell.name).late_mean(arguments.sweep_epochs)
    if not swept:
        return None
    best = max(swept, key=lambda rate: swept[rate])
    if len(swept) > 1 and best in (min(swept), max(swept)):
        print(f"{field}: the best of {optimizer}'s rates, {best:g}, is at an end of the sweep; widen it", flush=True)
    return None if best == usual and optimizer != "adam" else best


def image(arguments: argparse.Namespace) -> None:
    """Photos as fields."""
    for name in arguments.photos:
        target = test_image(name, arguments.side, arguments.out)
        per_epoch = ExampleSampler(arguments.side**2, 512, torch.Generator()).per_epoch
        every = tuple(per_epoch * epoch for epoch in range(1, SCORED_EPOCHS + 1))
        base = _base(
            arguments, task=TaskKind.IMAGE, epochs=arguments.epochs, eval_at=every, eval_every=SPARSE_EPOCHS * per_epoch
        )
        compare(str(target), base, arguments)


def occupancy(arguments: argparse.Namespace) -> None:
    """The inside of the synthetic knot."""
    base = _base(
        arguments,
        task=TaskKind.OCCUPANCY,
        epochs=arguments.epochs,
        points=arguments.points,
        batch=arguments.batch,
        eval_every=5 * math.ceil(arguments.points / arguments.batch),
    )
    compare(str(torus_knot(arguments.out)), base, arguments)


def nerf(arguments: argparse.Namespace) -> None:
    """A capture as a radiance field."""
    if arguments.capture is None:
        raise SystemExit("nerf needs --capture FOLDER, such as lego_200")
    base = _base(
        arguments,
        task=TaskKind.NERF,
        steps=arguments.steps,
        samples=arguments.samples,
        max_side=arguments.side,
        eval_every=max(1, arguments.steps // 10),
    )
    compare(str(arguments.capture), base, arguments)


def start(arguments: argparse.Namespace) -> None:
    """Whether ESGD's start on sine is stable: PSNR after 32 steps, with ten first probes and with one."""
    target = str(test_image("astronaut", arguments.side, arguments.out))
    base = _base(arguments, task=TaskKind.IMAGE, steps=32, eval_every=0)
    lines = []
    for probes in (1, 10):
        options = find_field_optimizer("esgd").entry.options(first_probes=probes)
        found = []
        for seed in range(20):
            folder = arguments.out / f"start-{probes}-seed{seed}"
            if "psnr" not in read_json(folder / "eval.json"):
                again = (folder / "config.json").exists()
                config = base.changed(
                    target=target, field="sine", optimizer="esgd", optimizer_options=options, seed=seed
                )
                fit_field(config.changed(out=folder, resume=again))
            found.append(read_json(folder / "eval.json")["psnr"])
        lines.append(f"| {probes} | {min(found):.2f} | {mean_sd(found, '.2f')} | {max(found):.2f} |")
        print(lines[-1], flush=True)
    text = "| first probes | least | mean ± sd | most |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    (arguments.out / "start.md").write_text(text)


def cost(arguments: argparse.Namespace) -> None:
    """Seconds per step of each optimizer over Adam's, in turns within one process; medians of 100 steps each."""
    from splatopt.core.optimizer import Progress
    from splatopt.fit.setup import open_task
    from splatopt.optim.field_optimizers import make_field_optimizer

    target = str(test_image("astronaut", arguments.side, arguments.out))
    names = ["adam", *arguments.optimizers]
    lines = []
    for field in arguments.fields:
        running = []
        for name in names:
            generator = torch.Generator().manual_seed(0)
            task = open_task(FitConfig.of(target, field=field).resolved(), generator).task
            running.append((task, make_field_optimizer(name, task, field, None, generator)))
        seconds: list[list[float]] = [[] for _ in names]
        # Turns of 100 steps, so that each has one of the later refreshes in every turn; the first 100 warm up.
        for turn in range(4):
            for index, (task, optimizer) in enumerate(running):
                began = time.perf_counter()
                for step in range(100):
                    batch = torch.randperm(task.size, generator=torch.Generator().manual_seed(step))[:512]
                    optimizer.step(batch, Progress(100 * turn + step, 400))
                if turn:
                    seconds[index].append((time.perf_counter() - began) / 100)
        medians = [statistics.median(times) for times in seconds]
        ratios = " | ".join(f"{1000 * one:.1f} ms, {one / medians[0]:.2f}" for one in medians)
        lines.append(f"| {field} | {ratios} |")
        print(lines[-1], flush=True)
    head = f"| field | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}\n"
    (arguments.out / "cost.md").write_text(head + "\n".join(lines) + "\n")


# ---------------------------------------------------------------------- table


def table(arguments: argparse.Namespace) -> None:
    """Write ``table.md``: a row for each field, optimizer and rate, Adam's whole sweep among them."""
    curves = read_curves(arguments.out)
    if not curves:
        raise SystemExit(f"there is no finished run below {arguments.out}")
    text = "\n\n".join(table_of(score, [curve for curve in curves if curve.score == score]) for score in LEVELS)
    (arguments.out / "table.md").write_text(text.strip() + "\n")
    print(text.strip())


def _base(arguments: argparse.Namespace, **settings: object) -> FitConfig:
    """What all cells share; the target is filled in later."""
    return FitConfig.of("", width=arguments.width, threads=arguments.threads, log_every=100, **settings)  # type: ignore[arg-type]


QUESTIONS = {
    "image": image,
    "occupancy": occupancy,
    "nerf": nerf,
    "start": start,
    "cost": cost,
    "table": table,
}


def main(words: Sequence[str] | None = None) -> int:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fields", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--fields", nargs="+", default=list(FIELDS), choices=FIELDS)
    parser.add_argument("--optimizers", nargs="*", default=["esgd"], help="beside Adam")
    parser.add_argument("--adam-rates", nargs="+", type=float, default=list(ADAM_RATES))
    parser.add_argument(
        "--rates", nargs="*", type=float, default=[], help="of the others, swept as well; else their own"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--photos", nargs="+", default=["astronaut"], help="names in skimage.data")
    parser.add_argument("--side", type=int, default=256, help="of the photos, pixels")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--sweep-epochs", type=int, help="of the sweeps of rates; as many as of a run if left out")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--points", type=int, default=200_000, help="of occupancy")
    parser.add_argument("--batch", type=int, default=50_000, help="of occupancy")
    parser.add_argument("--capture", type=Path, help="of nerf")
    parser.add_argument("--steps", type=int, default=5000, help="of nerf")
    parser.add_argument("--samples", type=int, default=64, help="of nerf, per ray")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; these nets are too small for more")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    QUESTIONS[arguments.question](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
