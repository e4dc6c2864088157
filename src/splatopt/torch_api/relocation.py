"""What gsplat's ``MCMCStrategy`` asks of CUDA, on a CPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.density.relocation import MAX_COPIES, relocation
from splatopt.torch_api.covariances import quat_scale_to_covar_preci


def compute_relocation(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacity and scales of Gaussians that are shared among copies of themselves, as gsplat's function does.

    The formulas are those of :mod:`splatopt.density.relocation` (Kheradmand et al. 2024), in float64.

    Args:
        opacities: o, (N,) or (N, 1), below 1.
        scales: s, (N, 3).
        ratios: How many each becomes, itself counted, (N,); held to 1 and the count that ``binoms`` is made for.
        binoms: Binomial coefficients, (n, n); their number is read alone.

    Returns:
        Opacities in the shape that came, and scales (N, 3).

    Raises:
        InputError: ``binoms`` is made for more copies than the sums keep digits for.
    """
    if binoms.shape[0] > MAX_COPIES:
        raise InputError(f"binoms must be at most {MAX_COPIES} x {MAX_COPIES}, got {tuple(binoms.shape)}")
    copies = ratios.clamp(1, binoms.shape[0]).to(torch.int64)
    shared, factor = relocation(opacities.reshape(-1), copies)
    return shared.to(opacities).reshape(opacities.shape), (scales.double() * factor[:, None]).to(scales)


@contextlib.contextmanager
def gsplat_on_cpu() -> Iterator[None]:
    """Let gsplat's ``MCMCStrategy`` run on CPU tensors while this is open.

    The strategy calls two functions of CUDA, ``compute_relocation`` and ``quat_scale_to_covar_preci``, by their names
    in ``gsplat.strategy.ops``. There they are ours until the end, also where an exception ends it; nothing else of
    gsplat is touched. ``DefaultStrategy`` needs none of it.

    Raises:
        InputError: gsplat is not installed, or its strategies call other functions.
    """
    try:
        operations = importlib.import_module("gsplat.strategy.ops")
    except ImportError:
        raise InputError("gsplat is not installed; its strategies come with `pip install gsplat`") from None
    ours = {"compute_relocation": compute_relocation, "quat_scale_to_covar_preci": quat_scale_to_covar_preci}
    missing = [name for name in ours if not hasattr(operations, name)]
    if missing:
        raise InputError(f"this gsplat's strategies do not call {' and '.join(missing)}: version 1.5 is expected")
    theirs = {name: getattr(operations, name) for name in ours}
    try:
        vars(operations).update(ours)
        yield
    finally:
        vars(operations).update(theirs)
