"""The names of losses; each is a frozen dataclass whose fields are its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from splatopt.core.checks import InputError
from splatopt.core.plugins import Registry, calling_place
from splatopt.raster.losses import Charbonnier, L1Ssim, Loss, SquaredError
from splatopt.raster.torch_loss import TorchLoss


@dataclass(frozen=True)
class LossEntry:
    """One registered loss.

    Attributes:
        loss: The class, a frozen dataclass whose fields all have defaults.
        help: A line of help.
    """

    loss: type[Loss]
    help: str


LOSSES: Registry[LossEntry] = Registry("loss", "splatopt.losses", ())


def register_loss(name: str, loss: type[Loss], help: str = "") -> None:
    """Make ``loss`` known under ``name`` to the command line, suites and tests.

    Args:
        name: The word for it, as in ``--loss NAME``; its options follow under it, as in ``--charbonnier.epsilon``.
        loss: The class; of others' losses a subclass of :class:`~splatopt.raster.torch_loss.TorchLoss`.
        help: A line for ``splatopt train --help``.

    Raises:
        InputError: The name is taken, or the class is no loss that can be made without arguments.
    """
    place = calling_place()
    where = f"the loss {name!r} in {place}"
    if not (isinstance(loss, type) and issubclass(loss, Loss) and dataclasses.is_dataclass(loss)):
        raise InputError(f"{where} must be a dataclass that derives from TorchLoss, got {loss!r}")
    if issubclass(loss, TorchLoss) and not (loss.gives("value") or loss.gives("residuals")):
        raise InputError(f"{where} gives neither residuals nor value; {loss.__name__} must define one of them")
    try:
        loss()
    except TypeError as error:
        raise InputError(f"{where} cannot be made without arguments ({error}); give every field a default") from error
    LOSSES.add(name, LossEntry(loss, help), place)


def find_loss(name: str) -> LossEntry:
    """Return the entry of ``name``; raises InputError with the nearest names if there is none."""
    return LOSSES.find(name)


register_loss("l1-ssim", L1Ssim, help="L1 and SSIM, as 3DGS; the default, its share of SSIM is --ssim-weight")
register_loss("squared", SquaredError, help="half the mean squared error")
register_loss("charbonnier", Charbonnier, help="L1 with a rounded corner, and SSIM")
