"""The native module: loading it, and the threads it works with."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypedDict, Unpack, runtime_checkable

from torch import Tensor

from splatopt.core.checks import InputError

Native: TypeAlias = Any
"""An object of the native module; its stub asks for NumPy's arrays, for which PyTorch's tensors pass at run time."""

INSTRUCTIONS = ("avx512", "avx2", "portable")
"""Instruction sets that the native module is made for, fastest first. Processors other than x86 have portable alone, of
which the compiler makes what they know, NEON on ARM."""


@functools.cache
def load() -> ModuleType | None:
    """Return the compiled module, or None where the package was installed without it."""
    try:
        return importlib.import_module("splatopt._native")
    except ImportError:
        return None


def available() -> bool:
    """Whether the compiled module can be used."""
    return load() is not None


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this build and this processor share, fastest first; none without the module."""
    module = load()
    return tuple(module.supported_isas()) if module else ()


def check_instructions_name(name: str) -> None:
    """Raise InputError unless ``name`` is auto or one of INSTRUCTIONS."""
    if name not in ("auto", *INSTRUCTIONS):
        raise InputError(f"--instructions must be auto, {', '.join(INSTRUCTIONS)}, got {name!r}")


def find_instructions(name: str = "auto") -> str:
    """Return the instruction set that ``name`` stands for here; "auto" where there is no native module.

    Args:
        name: auto for the fastest, or one of INSTRUCTIONS.

    Raises:
        InputError: There is no such set, or this machine lacks it.
    """
    check_instructions_name(name)
    here = instruction_sets()
    if name == "auto":
        return here[0] if here else name
    if name not in here:
        has = ", ".join(here) if here else "no native module, and so none of them"
        raise InputError(f"--instructions {name} cannot be used: this machine has {has}; leave --instructions out")
    return name


def default_threads() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(threads: int = 0, isa: str = "auto") -> Native:
    """Return the shared pool of threads with the kernels that fit this processor.

    Args:
        threads: Threads including the caller's; 0 for one per processor.
        isa: "auto" for the fastest, or one of INSTRUCTIONS.

    Raises:
        InputError: There is no native module, or the processor lacks the instruction set.
    """
    return _workers(threads or default_threads(), isa)


@functools.cache
def _workers(threads: int, isa: str) -> Native:
    try:
        return _module().Workers(threads, isa)
    except ValueError as error:
        raise InputError(str(error)) from None


def _module() -> ModuleType:
    module = load()
    if module is None:
        raise InputError("the native module is not installed: run `make install` (it needs a C++20 compiler)")
    return module


class AdamNumbers(TypedDict):
    """The numbers of one Adam step; ``step`` is counted from 1."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    step: int


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    threads: int = 0,
    isa: str = "auto",
    **numbers: Unpack[AdamNumbers],
) -> None:
    """Take one Adam step in place, on contiguous float32 tensors on the CPU.

    With t = ``step`` counted from 1: m ← m + (1-β₁)(g-m), v ← β₂v + (1-β₂)g²,
    θ ← θ - rate/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε). The same bits for any number of ``threads``; 0 for one
    per processor. ``isa`` is the instruction set.
    """
    flat = parameter.detach().view(-1), gradient.view(-1), exp_avg.view(-1), exp_avg_sq.view(-1)
    workers(threads, isa).adam_step(*flat, **numbers)


def cloud_tensors(tensors: Mapping[str, Tensor]) -> Native:
    """Return the native view of a cloud's six float32 tensors, which must outlive it."""
    return _module().CloudTensors(**{name: value.detach() for name, value in tensors.items()})


def trust_bounds(**bounds: float | bool) -> Native:
    """Return the native form of one step's trust region, named as ``kernels.hellinger.TrustBounds`` is."""
    return _module().TrustBounds(**bounds)


def nearest_others(points: Tensor, rows: Tensor, threads: int = 0, isa: str = "auto") -> None:
    """Fill ``rows``, (N, k) int64, with the k < N nearest other points of each, (N, 3) float32, nearest first."""
    workers(threads, isa).nearest_others(points, rows)


def learned_passes(packed: Tensor, **shape: int | bool) -> Native:
    """Return the passes of a learned step; ``splatopt.meta.fused`` packs its network and names its shape."""
    return _module().LearnedPasses(packed, **shape)


@runtime_checkable
class LearnedMemory(Protocol):
    """What a learned run keeps of each Gaussian; ``splatopt.meta.inner.InnerState`` is one.

    Attributes:
        exp_avg: m, six tensors.
        exp_avg_sq: v.
        slow: The slower mean of gradients, of all but ``sh_rest``.
        latent: (N, C) float32.
        age: (N,) float32, whole numbers.
    """

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    slow: dict[str, Tensor]
    latent: Tensor
    age: Tensor


@dataclass(frozen=True)
class LearnedNumbers:
    """What a learned step is told.

    Attributes:
        scene: What the network is told of the scene after its eleven mean squares.
        rates: Adam's rates, of the six tensors in order.
        ageing: patience, fall, handover and least share: a row that was seen t times takes rates times
            (1 + (t-1)/patience)^-fall, and gates and corrections times 1/(1 + (t-1)/handover); where that is below
            the least share, and everywhere with a handover of 0, it takes Adam's step.
        betas: Decays of m, v and the slower mean.
        epsilon: Added to √v̂.
    """

    scene: list[float]
    rates: Sequence[float]
    ageing: tuple[float, float, float, float]
    betas: tuple[float, float, float]
    epsilon: float


def learned_step(
    workers: Any,
    passes: Any,
    parameters: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    memory: LearnedMemory,
    seen: Tensor,
    near: Tensor,
    numbers: LearnedNumbers,
) -> None:
    """Take one learned step in place, on contiguous tensors on the CPU, the same bits for any number of threads.

    Args:
        workers: What :func:`workers` gave.
        passes: What :func:`learned_passes` gave.
        parameters: A cloud's six tensors, float32.
        gradient: ∂loss/∂θ, likewise.
        memory: Written.
        seen: Rows that may move, (N,) bool.
        near: Rows of each row's nearest others, (N, k) int64.
        numbers: Rates, decays and what is said of the scene.
    """
    age = memory.age
    slow = {**memory.slow, "sh_rest": age.new_zeros(len(age), 0, 3)}
    held = [cloud_tensors(part) for part in (memory.exp_avg, memory.exp_avg_sq, slow)]
    beta1, beta2, beta_slow = numbers.betas
    workers.learned_step(
        passes,
        cloud_tensors(parameters),
        cloud_tensors(gradient),
        _module().LearnedMemory(*held, latent=memory.latent, age=age),
        seen,
        near,
        numbers.scene,
        rates=tuple(numbers.rates),
        ageing=numbers.ageing,
        beta1=beta1,
        beta2=beta2,
        beta_slow=beta_slow,
        epsilon=numbers.epsilon,
    )
