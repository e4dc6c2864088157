"""Optimizers, one file per family; importing this package registers all of them."""

from __future__ import annotations

from splatopt.optim import (  # noqa: F401 - registers their optimizers
    block_gauss_newton,
    diagonal_gauss_newton,
    hessian_diagonal,
    levenberg_marquardt,
    zoo,
)
from splatopt.optim.first_order import Adam, AdamOptions

__all__ = ["Adam", "AdamOptions"]
