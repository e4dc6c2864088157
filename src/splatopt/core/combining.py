"""How answers about microbatches become the answer about the batch, as a question's row declares it.

With the answer m_k over microbatch k, of V_k of the batch's V parts, a mean over the parts is Σ_k (V_k / V)·m_k. The
residuals of V_k parts alone are divided by √V_k and those of the batch by √V, so what is linear in residuals takes
√(V_k / V) instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from splatopt.core.objective import Combine, Question

Key = tuple[str, str]
"""A field of a record and a name in it; empty for the answer itself, and for a field that has no names."""


@dataclass
class Summands:
    """What an answer is combined of, by how.

    Attributes:
        numbers: Whose mean is taken.
        tensors: Whose mean is taken.
        masks: Of which any counts.
        greatest: Of which the greatest counts.
    """

    numbers: dict[Key, float] = field(default_factory=dict)
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    masks: dict[Key, Tensor] = field(default_factory=dict)
    greatest: dict[Key, Tensor] = field(default_factory=dict)

    def add(self, key: Key, combine: Combine, value: object) -> None:
        """Put ``value``, a number or a tensor, where it belongs."""
        if isinstance(value, Tensor):
            self._tensors(combine)[key] = value
        elif isinstance(value, float | int):
            self.numbers[key] = value

    def of(self, key: Key, combine: Combine) -> float | Tensor:
        """Return what :meth:`add` put."""
        if combine is Combine.NUMBER:
            return self.numbers[key]
        return self._tensors(combine)[key]

    def _tensors(self, combine: Combine) -> dict[Key, Tensor]:
        return {Combine.ANY: self.masks, Combine.MAX: self.greatest}.get(combine, self.tensors)


def take_apart(row: Question, answer: object) -> Summands:
    """Return the summands of ``answer``; they share its memory."""
    found = Summands()
    for name, combine, value in _fields(row, answer):
        if combine is not Combine.SAME:
            entries = value if isinstance(value, Mapping) else {"": value}
            for key, entry in entries.items():
                found.add((name, key), combine, entry)
    return found


def put_together(row: Question, like: object, summands: Summands) -> object:
    """Return an answer such as ``like``, of ``summands``."""
    fields: dict[str, object] = {}
    for name, combine, value in _fields(row, like):
        if combine is Combine.SAME or value is None:
            fields[name] = value
        elif isinstance(value, Mapping):
            fields[name] = {key: summands.of((name, key), combine) for key in value}
        else:
            fields[name] = summands.of((name, ""), combine)
    return replace(like, **fields) if row.record else fields[""]  # type: ignore[type-var] # a record is a dataclass


def weight(row: Question, share: float) -> float:
    """Return what the answer of a microbatch counts that has ``share`` of the parts."""
    return math.sqrt(share) if row.of_residuals or row.combine is Combine.STACK else share


def arguments_of(row: Question, arguments: tuple[object, ...], positions: slice) -> tuple[object, ...]:
    """Return the arguments of a question for the parts at ``positions``: of residuals, theirs."""
    if not row.of_residuals:
        return arguments
    residuals, *others = arguments
    assert isinstance(residuals, tuple | list)
    return (residuals[positions], *others)


def combined(row: Question, answers: Iterable[tuple[float, object]]) -> object:
    """Return the answer for a batch.

    Args:
        row: The question's.
        answers: The share and the answer of each microbatch; an answer's memory may be reused by the next.
    """
    like: object = None
    total: Summands | None = None
    for share, answer in answers:
        own, factor = take_apart(row, answer), weight(row, share)
        if total is None:
            like = answer
            total = Summands(
                {key: factor * number for key, number in own.numbers.items()},
                {key: tensor * factor for key, tensor in own.tensors.items()},
                {key: mask.clone() for key, mask in own.masks.items()},
                {key: tensor.clone() for key, tensor in own.greatest.items()},
            )
            continue
        for key, number in own.numbers.items():
            total.numbers[key] += factor * number
        for key, tensor in own.tensors.items():
            total.tensors[key].add_(tensor, alpha=factor)
        for key, mask in own.masks.items():
            total.masks[key] |= mask
        for key, tensor in own.greatest.items():
            torch.maximum(total.greatest[key], tensor, out=total.greatest[key])
    if total is None:
        raise ValueError("a batch must have at least one microbatch, got none")
    return put_together(row, like, total)


def outline(row: Question, answer: object) -> str:
    """Return the form of ``answer`` as a text, from which :func:`blank` makes one of zeros."""
    return json.dumps(
        {
            name: list(value) if combine is Combine.SAME and isinstance(value, tuple) else _outline(combine, value)
            for name, combine, value in _fields(row, answer)
        }
    )


def blank(row: Question, form: str, device: torch.device) -> object:
    """Return an answer of zeros and of what is the same in all, in the form that :func:`outline` told."""
    fields = {name: _blank(value, device) for name, value in json.loads(form).items()}
    return row.record(**fields) if row.record else fields[""]


def _fields(row: Question, answer: object) -> Iterator[tuple[str, Combine, object]]:
    """Yield the name of each field of an answer, how it is combined, and its value; the answer itself has no name."""
    if isinstance(row.combine, Combine):
        yield "", row.combine, answer
    else:
        for name, combine in row.combine.items():
            yield name, combine, getattr(answer, name)


def _outline(combine: Combine, value: object) -> object:
    if isinstance(value, Mapping):
        return {"names": {name: _outline(combine, entry) for name, entry in value.items()}}
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return 0.0 if combine is Combine.NUMBER else value


def _blank(form: object, device: torch.device) -> object:
    match form:
        case {"names": dict() as names}:
            return {name: _blank(entry, device) for name, entry in names.items()}
        case {"shape": list() as shape, "dtype": str() as dtype}:
            return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
        case list():
            return tuple(form)
        case _:
            return form
