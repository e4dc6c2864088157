"""Adam against ESGD, AdaHessian and Sophia, which divide by a diagonal of curvature, on a synthetic capture.

``adam-tuned`` is Adam with higher rates that all decay. The others divide the gradient by what random probes say of
the Hessian: ``esgd`` by the norms of its rows, ``adahessian`` by its diagonal, ``sophia`` by the Gauss-Newton diagonal,
or with an option of its own by the Hessian's. Run it with ``python examples/hessian_diagonal.py``; it takes a few
seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import splatopt
from splatopt.data import make_capture
from splatopt.optim.hessian_diagonal import SophiaOptions


def main() -> None:
    # Estimates of the Hessian's diagonal may be negative, and where they are Sophia takes the longest step.
    sophia_h = SophiaOptions(estimator="hutchinson", gamma=30.0)
    runs = {"adam": None, "adam-tuned": None, "esgd": None, "adahessian": None, "sophia": None, "sophia-h": sophia_h}
    with tempfile.TemporaryDirectory() as folder:
        capture = make_capture(Path(folder) / "capture", views=16, width=96, height=72, points=1000)
        for name, options in runs.items():
            result = splatopt.train(
                capture,
                optimizer="sophia" if options else name,
                optimizer_options=options,
                steps=150,
                out=Path(folder) / name,
                callbacks=[],
            )
            print(f"{name}: {result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
