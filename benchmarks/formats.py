"""What formats of scene files keep: `python -m benchmarks.formats RUN`.

The scene of a run is written in every format, read back, and rendered from the held-out views of its capture: PSNR
against the renders of the run's own scene, against the photographs, and the size of the file. Prints a Markdown table;
a format whose program is not here is left out with a sentence.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from splatopt.commands.export import agreement
from splatopt.core.checks import InputError
from splatopt.report.splat_page import StartView, write_splat_page
from splatopt.scene.scene_files import WRITTEN, load_scene, save_scene
from splatopt.train.run import open_run


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    given = parser.parse_args(words)
    run = open_run(given.run)
    capture = run.open_capture()
    objective = run.objective(capture)
    views = list(capture.split.test)
    photographs = sum(score.psnr for score in objective.evaluate(views)) / len(views)
    count = len(run.trained)
    print(f"{count:,} Gaussians of degree {run.trained.sh_degree}; its own renders have {photographs:.2f} dB\n")
    print("| format | bytes | bytes a Gaussian | PSNR against the run, dB | PSNR against the photographs, dB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ending in sorted(WRITTEN, key=len):
            path = Path(folder) / f"scene{ending}"
            try:
                save_scene(run.trained, path, [])
                read = load_scene(path, [])
            except InputError as error:
                print(error, file=sys.stderr)
                continue
            same = agreement(read, objective, views)
            bound = run.objective(capture)
            bound.cloud = read
            scores = bound.evaluate(views)
            mean = sum(score.psnr for score in scores) / len(scores)
            size = path.stat().st_size
            shown = "the same" if same > 100 else f"{same:.2f}"
            print(f"| `{ending}` | {size:,} | {size / count:.1f} | {shown} | {mean:.2f} |")
        page = Path(folder) / "scene.html"
        cameras = [capture.cameras[view] for view in capture.split.train]
        write_splat_page(page, run.trained, StartView.of(run.trained, cameras), objective.options, "scene")
        size = page.stat().st_size
        print(f"| `.html` | {size:,} | {size / count:.1f} | not read back | |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
