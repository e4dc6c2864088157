"""The loss of a run: its name and its options become a :class:`~splatopt.raster.losses.Loss`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.typed import read_dataclass
from splatopt.raster.loss_registry import find_loss
from splatopt.raster.losses import Image, L1Ssim, Loss, Weights
from splatopt.raster.torch_loss import TorchLoss
from splatopt.runs.unread import UnreadOptions, read_options

USUAL_LOSS = "l1-ssim"
"""Its options are one, ``--ssim-weight``."""


def checked_loss_options(name: str, options: Any, usual: L1Ssim) -> Any:
    """Return the loss that ``options`` describe, its defaults where they are None; None for the usual one.

    Args:
        name: The loss.
        options: An instance of its class, or its fields by name, as a suite gives them.
        usual: The usual loss, as ``--ssim-weight`` makes it.

    Raises:
        InputError: There is no such loss, or the options are another's.
    """
    if isinstance(options, UnreadOptions):
        return options
    kind = find_loss(name).loss
    if name == USUAL_LOSS:
        if options is not None:
            raise InputError(f"the loss {USUAL_LOSS} takes its share of SSIM from --ssim-weight, and no other options")
        return None
    if usual != L1Ssim():
        raise InputError(
            f"--ssim-weight {usual.shares.ssim:g} is the share of SSIM in the loss {USUAL_LOSS}, and the loss is "
            f"{name}; leave it out, or give the loss's own options, as `splatopt train --loss {name} --help` lists them"
        )
    if isinstance(options, Mapping):
        return read_dataclass(dict(options), kind, "option", f"the options of the loss {name!r}")
    if options is not None and not isinstance(options, kind):
        raise InputError(f"the options of the loss {name!r} must be a {kind.__name__}, got a {type(options).__name__}")
    return kind() if options is None else options


@dataclass(frozen=True)
class UnknownLoss(TorchLoss):
    """The loss of a run that can only be looked at, as its loss is not known here: whoever asks it is told so.

    Attributes:
        reason: Why it is not known, a sentence.
    """

    reason: str = ""

    def value(self, image: Image, target: Image, weights: Weights) -> Tensor:
        """Raise InputError."""
        raise InputError(self.reason)


def chosen_loss(name: str, options: Any, usual: L1Ssim) -> Loss:
    """Return the loss of a run."""
    if isinstance(options, UnreadOptions):
        return UnknownLoss(options.reason)
    if name == USUAL_LOSS:
        return usual
    return options


def saved_loss_options(name: str, saved: Any, where: str) -> Any:
    """Return the options that a run's file holds for its loss.

    Args:
        name: The loss.
        saved: What was read; None for none.
        where: The file, for messages.

    Raises:
        InputError: They are no options of this loss.
    """
    if name == USUAL_LOSS and saved is None:
        return None
    return read_options({} if saved is None else saved, lambda: find_loss(name).loss, f"{where}: loss_options")
