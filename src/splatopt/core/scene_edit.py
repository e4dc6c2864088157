"""Scene edits: the one way in which Gaussians are added, copied, moved, changed or removed.

An edit says which old row each new row copies, and what changes beside: values that are written, momenta that start
anew, and factors that the carried states take. Clone, split, prune, relocate, add and opacity reset are all of this
form. :func:`apply_edit` carries an edit out, and :meth:`SceneEdit.then` makes one edit of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Written:
    """New values of some rows of one parameter.

    Attributes:
        rows: Which rows, counted after the gather, (K,), int64, each at most once.
        values: What they become, (K, ...), in the parameter's type.
    """

    rows: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        """Check that there is one value for each row."""
        if self.rows.dtype != torch.int64 or self.rows.dim() != 1:
            raise ValueError(f"rows must be (K,) int64, got {tuple(self.rows.shape)} {self.rows.dtype}")
        if self.values.shape[:1] != self.rows.shape:
            raise ValueError(f"values must have {len(self.rows)} rows, got {tuple(self.values.shape)}")


@dataclass(frozen=True)
class SceneEdit:
    """A gather over rows, and what changes beside it. N rows become M.

    Attributes:
        source: New row i copies old row ``source[i]``, (M,), int64.
        fresh: Whether new row i starts with an empty optimizer state, (M,), bool.
        values: By parameter, what is written over the gathered rows.
        resets: By parameter, the rows whose momentum in that parameter alone starts anew, (M,), bool. A curvature that
            is averaged over the age of a whole row cannot start anew for one parameter; it follows ``factors``.
        factors: By parameter, f > 0, (M,), float: from now on the row's gradient in that parameter is about f times
            what it was. A state that is of degree d in the gradient is multiplied by fᵈ: momentum by f, curvature by
            f², an entry of a row's block by the product of both parameters' factors.
    """

    source: Tensor
    fresh: Tensor
    values: Mapping[str, Written] = field(default_factory=dict)
    resets: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that all columns belong together."""
        if self.source.dtype != torch.int64 or self.source.dim() != 1:
            raise ValueError(f"source must be (M,) int64, got {tuple(self.source.shape)} {self.source.dtype}")
        shape = self.source.shape
        for name, rows in {
            "fresh": self.fresh,
            **{f"resets[{key!r}]": rows for key, rows in self.resets.items()},
        }.items():
            if rows.dtype != torch.bool or rows.shape != shape:
                raise ValueError(f"{name} must be bool of shape {tuple(shape)}, got {tuple(rows.shape)} {rows.dtype}")
        for name, factor in self.factors.items():
            if not factor.is_floating_point() or factor.shape != shape:
                raise ValueError(
                    f"factors[{name!r}] must be float of shape {tuple(shape)}, got {tuple(factor.shape)} {factor.dtype}"
                )
            if not bool((torch.isfinite(factor) & (factor > 0)).all()):
                raise ValueError(f"factors[{name!r}] must be positive numbers")
        if len(self.source) and int(self.source.min()) < 0:
            raise ValueError(f"source must be rows from 0 on, got {int(self.source.min())}")

    @classmethod
    def keep(cls, mask: Tensor) -> SceneEdit:
        """Keep the rows where ``mask`` (N,) is true, with their states."""
        source = mask.nonzero().squeeze(1)
        return cls(source, torch.zeros(source.shape, dtype=torch.bool, device=source.device))

    @classmethod
    def in_place(
        cls,
        count: int,
        device: torch.device | str = "cpu",
        values: Mapping[str, Written] | None = None,
        resets: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, Tensor] | None = None,
    ) -> SceneEdit:
        """Keep all of ``count`` rows where they are; only what is given beside changes, as in an opacity reset."""
        source = torch.arange(count, device=device)
        fresh = torch.zeros(count, dtype=torch.bool, device=device)
        return cls(source, fresh, values or {}, resets or {}, factors or {})

    def __len__(self) -> int:
        """Rows after the edit, M."""
        return len(self.source)

    def gather(self, rows: Tensor) -> Tensor:
        """Return ``rows[source]``: what data that belong to a row become."""
        return rows[self.source]

    def parameter(self, name: str, rows: Tensor) -> Tensor:
        """Return what the parameter ``name`` becomes: its gathered rows, with the edit's values written over them."""
        edited = rows[self.source]
        if name in self.values:
            edited[self.values[name].rows] = self.values[name].values
        return edited

    def gather_state(self, rows: Tensor) -> Tensor:
        """Return ``rows[source]`` with zeros where fresh: what a count or a latent state of rows becomes."""
        moved = rows[self.source]
        moved[self.fresh] = 0
        return moved

    def parameter_state(self, name: str, rows: Tensor, degree: int, resettable: bool = True) -> Tensor:
        """Return what a state of the parameter ``name`` becomes.

        Args:
            name: The parameter.
            rows: The state, (N, ...).
            degree: d, of which degree in the gradient it is: 1 for momentum, 2 for curvature.
            resettable: Whether ``resets`` clear it.
        """
        moved = self.gather_state(rows)
        if name in self.factors:
            moved.mul_(_by_row(self.factors[name].to(moved.dtype) ** degree, moved))
        if resettable and name in self.resets:
            moved[self.resets[name]] = 0
        return moved

    def then(self, later: SceneEdit) -> SceneEdit:
        """Return the one edit that does what this one and ``later``, whose N is this one's M, do in turn.

        Only what a fresh row begins with is seen once: a bound on its growth is that of its last values.
        """
        source = later.source

        def both(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str, default: Tensor) -> Tensor:
            first = mine[name][source] if name in mine else default
            second = theirs.get(name, default)
            return first | second if default.dtype == torch.bool else first * second

        nothing = torch.zeros_like(later.fresh)
        resets = {name: both(self.resets, later.resets, name, nothing) for name in {**self.resets, **later.resets}}
        factors = {}
        for name in {**self.factors, **later.factors}:
            like = self.factors.get(name, later.factors.get(name))
            assert like is not None
            factors[name] = both(self.factors, later.factors, name, like.new_ones(len(later)))
        values = {
            name: _written_after(self.values.get(name), later, name, len(self))
            for name in {**self.values, **later.values}
        }
        return SceneEdit(self.source[source], self.fresh[source] | later.fresh, values, resets, factors)


def _written_after(earlier: Written | None, later: SceneEdit, name: str, count: int) -> Written:
    """Return what is written of one parameter by an edit of ``count`` rows and a later one."""
    own = later.values.get(name)
    if earlier is None:
        assert own is not None
        return own
    place = torch.full((count,), -1, dtype=torch.int64, device=earlier.rows.device)
    place[earlier.rows] = torch.arange(len(earlier.rows), device=place.device)
    place = place[later.source]
    if own is not None:
        place[own.rows] = -1
    rows = (place >= 0).nonzero().squeeze(1)
    values = earlier.values[place[rows]]
    return (
        Written(rows, values) if own is None else Written(torch.cat([rows, own.rows]), torch.cat([values, own.values]))
    )


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    """Return one number per row in a shape that broadcasts to ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


@runtime_checkable
class FollowsEdits(Protocol):
    """What keeps something by row: an objective, an optimizer, a density strategy."""

    def edit_rows(self, edit: SceneEdit) -> None:
        """Follow ``edit``."""
        ...


def apply_edit(
    edit: SceneEdit,
    objective: FollowsEdits,
    *followers: FollowsEdits,
    check_memory: Callable[[int], None] | None = None,
) -> None:
    """Carry ``edit`` out: the objective's rows and values first, then each follower in the order given.

    Args:
        edit: What changes.
        objective: Whose parameters are gathered and written.
        followers: The optimizer, then the strategy; each finds the objective's parameters as they are after the edit.
        check_memory: Asked first, with the number of rows that there will be; raises InputError where they do not fit.
    """
    if check_memory is not None:
        check_memory(len(edit))
    objective.edit_rows(edit)
    for follower in followers:
        follower.edit_rows(edit)
