"""Row edits: the one way in which Gaussians are added, copied, moved or removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowEdit:
    """A gather over rows: clone, split, prune, relocate and add are all of this form.

    Attributes:
        source: New row i copies old row ``source[i]``, (M,), int64.
        fresh: Whether new row i starts with an empty optimizer state, (M,), bool.
    """

    source: Tensor
    fresh: Tensor

    def __post_init__(self) -> None:
        """Check that the two columns belong together."""
        if self.source.dtype != torch.int64 or self.source.dim() != 1:
            raise ValueError(f"source must be (M,) int64, got {tuple(self.source.shape)} {self.source.dtype}")
        if self.fresh.dtype != torch.bool or self.fresh.shape != self.source.shape:
            raise ValueError(f"fresh must be bool of shape {tuple(self.source.shape)}, got {tuple(self.fresh.shape)}")

    @classmethod
    def keep(cls, mask: Tensor) -> RowEdit:
        """Keep the rows where ``mask`` (N,) is true, with their states."""
        source = mask.nonzero().squeeze(1)
        return cls(source, torch.zeros(source.shape, dtype=torch.bool, device=source.device))

    def gather(self, rows: Tensor) -> Tensor:
        """Return ``rows[source]``: what a parameter becomes."""
        return rows[self.source]

    def gather_state(self, rows: Tensor) -> Tensor:
        """Return ``rows[source]`` with zeros where fresh: what an optimizer state becomes."""
        moved = rows[self.source]
        moved[self.fresh] = 0
        return moved
