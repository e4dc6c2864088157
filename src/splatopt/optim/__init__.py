"""Optimizers, one file per family; importing this package registers all of them."""

from __future__ import annotations

from splatopt.optim.first_order import Adam, AdamOptions

__all__ = ["Adam", "AdamOptions"]
