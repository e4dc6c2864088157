"""Weights of learned steps: safetensors, and a JSON file beside them that says what they are.

``tiny.safetensors`` holds the network's tensors; ``tiny.json`` its shape, the rates of the Adam inside, the size and
SHA-256 of the tensors' file, and how they came to be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch

from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError, nearest_names, quoted
from splatopt.core.reading import DamagedFileError, parse_json, parse_tensors, read_bounded
from splatopt.core.typed import read_dataclass, told
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork, NetworkOptions

FORMAT = "splatopt-learned-2"
SHIPPED = Path(__file__).parent / "weights"
_MAX_BYTES = 64 * 2**20
_MAX_TEXT = 2**20
_Part = TypeVar("_Part", NetworkOptions, InnerRates)


@dataclass(frozen=True)
class LearnedWeights:
    """A network and the Adam that it corrects.

    Attributes:
        network: In evaluation mode, without gradients.
        rates: The Adam inside.
        metadata: How it was trained: command, seed, hours, machine.
        digest: SHA-256 of the tensors' file, hexadecimal.
    """

    network: LearnedNetwork
    rates: InnerRates
    metadata: Mapping[str, object]
    digest: str

    @property
    def mark(self) -> int:
        """48 bits of a digest of tensors and rates, as a number that a run's state can hold."""
        told = f"{self.digest} {json.dumps(asdict(self.rates), sort_keys=True)}"
        return int(hashlib.sha256(told.encode()).hexdigest()[:12], 16)


def shipped_names() -> tuple[str, ...]:
    """Names of the weights that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def save_weights(path: Path, network: LearnedNetwork, rates: InnerRates, metadata: Mapping[str, object]) -> Path:
    """Write weights to ``path`` (NAME.safetensors) and NAME.json beside it; each is replaced whole.

    Returns:
        The path of the JSON file.
    """
    data = safetensors.torch.save({name: value.detach().contiguous() for name, value in network.state_dict().items()})
    header = {
        "format": FORMAT,
        "network": asdict(network.options),
        "rates": asdict(rates),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "metadata": dict(metadata),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    described = path.with_suffix(".json")
    for target, content in ((path, data), (described, (json.dumps(header, indent=1) + "\n").encode())):
        replace_file(target, content)
    return described


def load_weights(name: str) -> LearnedWeights:
    """Load shipped weights by their name, or others by the path of their .safetensors file.

    Raises:
        InputError: There are none, they are of another version, or a file is damaged or not what it says.
    """
    if name.endswith(".safetensors"):
        path = Path(name)
    elif name in shipped_names():
        path = SHIPPED / f"{name}.safetensors"
    else:
        raise InputError(
            f"no weights are named {quoted(name)}; {nearest_names(name, shipped_names())} - or give the path of a "
            ".safetensors file that splatopt meta-train wrote"
        )
    header = _read_header(path.with_suffix(".json"))
    data = _read(path, _MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != header.get("bytes") or digest != header.get("sha256"):
        raise InputError(
            f"weights {path} are damaged: their {len(data)} bytes are not those that {path.with_suffix('.json').name} "
            "describes; copy both files again, or train them anew with splatopt meta-train"
        )
    try:
        options = _known(header, "network", NetworkOptions, path.with_suffix(".json"))
        rates = _known(header, "rates", InnerRates, path.with_suffix(".json"))
        tensors = parse_tensors(data, str(path))
    except InputError as error:
        raise InputError(f"weights {path} cannot be used: {error}") from error
    network = LearnedNetwork(options)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    found = {key: value.shape for key, value in tensors.items()}
    if expected != found:
        odd = sorted({key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)})
        raise InputError(
            f"weights {path} do not fit this version's network of their size: {odd[0]} must be "
            f"{_shape(expected.get(odd[0]))}, got {_shape(found.get(odd[0]))}; train them anew with splatopt meta-train"
        )
    for key, value in tensors.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value.float()).all()):
            came = value.dtype if not value.is_floating_point() else "some that are infinite or not numbers"
            raise InputError(
                f"weights {path} cannot be used: {key} must hold finite floating-point numbers, got {came}; train them "
                "anew with splatopt meta-train"
            )
    network.load_state_dict(tensors)
    network.requires_grad_(False).eval()
    metadata = header.get("metadata")
    return LearnedWeights(network, rates, metadata if isinstance(metadata, dict) else {}, digest)


def _shape(shape: Sequence[int] | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_bounded(path, max_bytes)
    except DamagedFileError as error:
        raise InputError(f"weights {error}") from error


def _read_header(path: Path) -> dict[str, object]:
    try:
        header = parse_json(_read(path, _MAX_TEXT), str(path))
    except DamagedFileError as error:
        raise InputError(f"{path}, which describes the weights beside it, cannot be read: {error}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} is of format {told(found)}; this version of splatopt reads {FORMAT!r}: train anew with "
            "splatopt meta-train, or take the version that wrote it"
        )
    return dict(header)


def _known(header: Mapping[str, object], part: str, of: type[_Part], where: Path) -> _Part:
    """One of the parts of a header, with all its numbers."""
    values, names = header.get(part), {item.name for item in fields(of)}
    if not isinstance(values, dict) or set(values) != names:
        raise InputError(f"its {part} must name {', '.join(sorted(names))}")
    return read_dataclass(values, of, "number", f"{where}: {part}")
