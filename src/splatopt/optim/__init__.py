"""Optimizers, one file per family; importing this package registers all of them."""

from __future__ import annotations

from splatopt.optim import block_gauss_newton, diagonal_gauss_newton, zoo  # noqa: F401 - registers their optimizers
from splatopt.optim.first_order import Adam, AdamOptions

__all__ = ["Adam", "AdamOptions"]
