"""A dictionary of a scene's parameters, by the names and in the shapes of others and of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from splatopt.core.checks import InputError
from splatopt.core.schema import GAUSSIAN_TENSORS, SH_REST_COUNTS

GSPLAT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "means": "means",
        "scales": "log_scales",
        "quats": "quats",
        "opacities": "logit_opacities",
        "sh0": "sh_dc",
        "shN": "sh_rest",
    }
)
"""What gsplat's trainers call the six tensors of Gaussians, and what we do."""

ParameterDict: TypeAlias = nn.ParameterDict | MutableMapping[str, Tensor]

_WIDTHS = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (), "sh_dc": (3,)}


class SceneParameters:
    """The tensors of a dictionary that are Gaussians', shared and not copied, and those that are not.

    Attributes:
        given: The dictionary; whoever edits its rows replaces its tensors.
        names: Our name of each of its keys that is of a Gaussian.
        others: Its other keys.
    """

    def __init__(self, given: ParameterDict, names: Mapping[str, str] | None = None) -> None:
        """Find out which key is what.

        Args:
            given: Leaf tensors, of gsplat's names (means, scales, quats, opacities, sh0, shN) or of ours, scales as
                logarithms and opacities as logits.
            names: Our name of each key, where the keys are others.

        Raises:
            InputError: A tensor of Gaussians is missing, of another shape, or in a type that cannot be trained in.
        """
        self.given = given
        self.names = _names_of(given, names)
        self.others = tuple(key for key in given if key not in self.names)
        missing = [name for name in GAUSSIAN_TENSORS[:-1] if name not in self.names.values()]
        if missing:
            wanted = [key for key, name in GSPLAT_NAMES.items() if name in missing]
            raise InputError(
                f"a scene's parameters must be {', '.join(GSPLAT_NAMES)} (shN may be absent), and {', '.join(wanted)} "
                f"is missing among {', '.join(given)}; say which key is which with names={{key: name}}, or give "
                "parameters that are no Gaussians' to an optimizer of their own"
            )
        self._tensors: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        self.bind()

    def bind(self) -> None:
        """Take up the tensors that the dictionary holds now; those that lie in strides are laid out anew.

        Raises:
            InputError: As above.
        """
        self._tensors = {key: self.given[key] for key in self.names}
        first = next(iter(self._tensors.values()))
        views: dict[str, Tensor] = {}
        for key, name in self.names.items():
            value = self._tensors[key]
            _check(key, value, first)
            if not value.is_contiguous():
                value.data = value.detach().contiguous()
            views[name] = value.detach().view(_shape(key, name, value))
        views.setdefault("sh_rest", first.detach().new_zeros(len(first), 0, 3))
        self._views = {name: views[name] for name in GAUSSIAN_TENSORS}

    @property
    def count(self) -> int:
        """How many Gaussians there are."""
        return len(self._views["means"])

    @property
    def views(self) -> dict[str, Tensor]:
        """The six tensors by our names and in our shapes, in the same memory and outside the graph."""
        return self._views

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of Gaussians that are bound, by the dictionary's keys."""
        return self._tensors

    def trained(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield key, name and tensor of those that are trained."""
        for key, name in self.names.items():
            if self._tensors[key].requires_grad:
                yield key, name, self._tensors[key]

    def in_our_shapes(self, by_key: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Return tensors in the shapes of the dictionary's in ours, by our names; zeros for None and what is absent."""
        found = {self.names[key]: value for key, value in by_key.items() if value is not None}
        return {
            name: found[name].detach().reshape(view.shape) if name in found else torch.zeros_like(view)
            for name, view in self._views.items()
        }

    def in_its_shape(self, key: str, value: Tensor) -> Tensor:
        """Return one of our tensors, of any number of rows, in the shape of the dictionary's own."""
        return value.reshape(len(value), *self._tensors[key].shape[1:])

    def check_others(self, rows: int) -> None:
        """Raise InputError unless each key that is no Gaussian's has ``rows`` rows, as an edit of rows wants it."""
        for key in self.others:
            check_rows(key, self.given[key], rows)

    def replace(self, key: str, value: Tensor) -> None:
        """Put a tensor of other rows in the place of ``key``, trained as the one before."""
        old = self.given[key]
        self.given[key] = nn.Parameter(value, requires_grad=old.requires_grad)


def check_rows(key: str, value: Tensor, rows: int) -> None:
    """Raise InputError unless ``value``, which is no Gaussian's, has ``rows`` rows."""
    if value.shape[:1] != (rows,):
        raise InputError(
            f"an edit of rows moves every tensor of the dictionary, and {key!r} of shape {tuple(value.shape)} has not "
            f"{rows} rows; keep what is not of each Gaussian, such as a background, outside the dictionary"
        )


def _names_of(given: ParameterDict, names: Mapping[str, str] | None) -> dict[str, str]:
    """Return our name of each key that is of a Gaussian."""
    if names is None:
        known = {**GSPLAT_NAMES, **{name: name for name in GAUSSIAN_TENSORS}}
        names = {key: known[key] for key in given if key in known}
    for key, name in names.items():
        if key not in given or name not in GAUSSIAN_TENSORS:
            raise InputError(
                f"names must map keys of the dictionary to {', '.join(GAUSSIAN_TENSORS)}, got {key!r}: {name!r}"
            )
    if len(set(names.values())) < len(names):
        raise InputError(f"two keys of the dictionary stand for the same tensor of Gaussians: {dict(names)}")
    return dict(names)


def _check(key: str, value: Tensor, first: Tensor) -> None:
    """Refuse a tensor that cannot be trained."""
    if not value.is_leaf:
        raise InputError(f"the parameter {key!r} must be a leaf, such as a torch.nn.Parameter, got a computed tensor")
    if value.dtype not in (torch.float32, torch.float64) or value.dtype != first.dtype:
        raise InputError(
            f"a scene's parameters must all be float32, or all float64, got {value.dtype} in {key!r}; autocast renders "
            "in less, and the parameters stay"
        )
    if value.device != first.device or value.shape[:1] != first.shape[:1]:
        raise InputError(
            f"a scene's parameters must have the same rows on one device, got {tuple(value.shape)} on {value.device} "
            f"in {key!r} and {tuple(first.shape)} on {first.device}; an edit of rows must replace all of them"
        )


def _shape(key: str, name: str, value: Tensor) -> tuple[int, ...]:
    """Return the shape in which we know a tensor; raises InputError where it has none of its forms."""
    rows = len(value)
    if name == "sh_rest":
        if value.dim() == 3 and value.shape[2] == 3 and value.shape[1] in SH_REST_COUNTS:
            return cast("tuple[int, ...]", tuple(value.shape))
        raise InputError(f"{key!r} must be (N, K, 3) with K of 0, 3, 8 or 15, got {tuple(value.shape)}")
    shape = (rows, *_WIDTHS[name])
    forms = {shape, (rows, 1)} if name == "logit_opacities" else {shape}
    if name == "sh_dc":
        forms.add((rows, 1, 3))
    if tuple(value.shape) not in forms:
        raise InputError(f"{key!r} must be {' or '.join(map(str, sorted(forms)))}, got {tuple(value.shape)}")
    return shape
