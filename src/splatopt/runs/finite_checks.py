"""What guards a run against numbers that break down."""

from __future__ import annotations

import math

import torch

from splatopt.core.objective import Tensors


def non_finite(what: str, tensors: Tensors) -> str | None:
    """Return the first of ``tensors`` that holds a NaN or infinity, with its count of rows; else None.

    One sum per tensor tells the usual case, since a sum with a NaN or infinite term is neither finite;
    only a sum that is not leads to a second look. A device is waited for once.

    Args:
        what: Word before the tensor's name.
        tensors: Named tensors.
    """
    sums = torch.stack([tensor.sum().double() for tensor in tensors.values()]).tolist() if tensors else []
    for (name, tensor), total in zip(tensors.items(), sums, strict=True):
        if math.isfinite(total) or not tensor.numel():
            continue
        rows = (~torch.isfinite(tensor.reshape(tensor.shape[0], -1))).any(dim=1)
        if rows.any():
            return f"the {what} {name} is not finite in {int(rows.sum())} of {len(rows)} rows"
    return None
