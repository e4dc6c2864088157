"""Levenberg-Marquardt as a second stage after Adam, and alone, on a synthetic capture.

A step of ``lm`` looks at all training views at once and solves for all Gaussians together, so it takes as long as
tens of Adam's steps. Run it with ``python examples/levenberg_marquardt.py``; it takes a few seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import splatopt
from splatopt.data import make_capture
from splatopt.optim.levenberg_marquardt import LevenbergMarquardtOptions


def main() -> None:
    options = LevenbergMarquardtOptions(iterations=4)
    with tempfile.TemporaryDirectory() as folder:
        capture = make_capture(Path(folder) / "capture", views=16, width=96, height=72, points=1000)
        for stages in ("adam:150", "adam:150,lm:8", "lm:8"):
            out = Path(folder) / stages.replace(":", "-")
            given = {"lm": options} if "lm" in stages else None
            result = splatopt.train(capture, stages=stages, optimizer_options=given, out=out, callbacks=[])
            print(f"{stages}: {result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
