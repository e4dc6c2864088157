"""Adam, Adam with searched rates, and the learned step that corrects it, on a synthetic capture.

``learned`` is a network that was trained once, on other scenes; it has no schedule. Run it with
``python examples/learned.py``; it takes a few seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import splatopt
from splatopt.data import make_capture


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        capture = make_capture(Path(folder) / "capture", views=24, width=96, height=72, points=1000)
        for name in ("adam", "adam-searched", "learned"):
            result = splatopt.train(
                capture, optimizer=name, steps=40, view_batch=8, sh_interval=0, out=Path(folder) / name, callbacks=[]
            )
            print(f"{name}: {result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
