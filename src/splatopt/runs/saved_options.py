"""The options of optimizers as a run's file holds them."""

from __future__ import annotations

from typing import Any

from splatopt.core.checks import InputError, quoted
from splatopt.core.optimizer import find_optimizer
from splatopt.core.typed import told
from splatopt.runs.unread import read_options


def saved_options(saved: object, optimizer: str, staged: bool, where: str) -> Any:
    """Return the options that a run's configuration holds: of its optimizer, or by name of each of its stages'.

    Args:
        saved: What was read.
        optimizer: The optimizer's name, where there are no stages.
        staged: Whether there are.
        where: The file, for messages.

    Raises:
        InputError: They are no such options; of an optimizer that is not known they stay unread.
    """
    if not staged:
        return _options_of(optimizer, saved, f"{where}: optimizer_options")
    if not isinstance(saved, dict):
        raise InputError(f"{where}: optimizer_options must be an object, got {told(saved)}")
    return {name: _options_of(name, one, f"{where}: optimizer_options: {quoted(name)}") for name, one in saved.items()}


def _options_of(optimizer: str, saved: object, where: str) -> Any:
    return read_options(saved, lambda: find_optimizer(optimizer).options, where)
