"""Adam against trust regions: without curvature, with its diagonal, with blocks, on a synthetic capture.

``sign-tr`` moves every parameter by its trust radius; ``tr2`` moves it by gradient over curvature where that is
shorter; ``block-gn`` solves each Gaussian's own 14×14 system within one ball. Run it with
``python examples/trust_region.py``; it takes a few seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import splatopt
from splatopt.data import make_capture


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        capture = make_capture(Path(folder) / "capture", views=16, width=96, height=72, points=1000)
        for name in ("adam", "sign-tr", "tr2", "block-gn"):
            result = splatopt.train(capture, optimizer=name, steps=150, out=Path(folder) / name, callbacks=[])
            print(f"{name}: {result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
