"""A GPU that is pretended: tensors that say they lie on CUDA, whose numbers lie on the CPU.

Each call of PyTorch is checked as CUDA checks it: tensors of two devices do not mix, but for numbers without dimensions
and for indices; what goes from one device to the other has to be copied there; NumPy sees nothing of a GPU; a CPU's
generator draws nothing there. So a test on a machine without a GPU finds what would be refused on one. Kernels of
Triton run on its interpreter. Nothing is said of speed, rounding or streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")

_ACROSS = {"copy_", "to", "__set__", "_has_compatible_shallow_copy_type"}
_INDEXING = {"__getitem__", "__setitem__", "index_put_"}


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on the fake GPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def on_gpu(value: Any) -> bool:
    """Whether a tensor is said to lie on the GPU."""
    return isinstance(value, OnGpu)


class _Pretence(TorchFunctionMode):
    """Catches every call, also those that make tensors out of nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    if function is torch.device:
        return function(*args, **kwargs)
    name = getattr(function, "__name__", "")
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    here = any(on_gpu(value) for value in tensors)
    if name == "__get__" and function == torch.Tensor.device.__get__:
        return DEVICE if here else torch.device("cpu")
    if name == "__get__" and function == torch.Tensor.is_cuda.__get__:
        return here
    if name in ("numpy", "__array__") and here:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first")
    if name == "tolist":
        return _plain(args[0]).tolist()
    asked = _asked_device(function, name, args, kwargs)
    if asked is None:
        _refuse_mixed(name, args, tensors)
    there = here if asked is None else asked.type == "cuda"
    if name == "copy_":
        there = on_gpu(args[0])
    generator = kwargs.get("generator")
    if generator is not None and there and generator.device.type == "cpu":
        raise RuntimeError(f"{name} draws on {DEVICE} with a generator of the CPU")
    args, kwargs = tree_map(_on_cpu, (args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        found = function(*args, **kwargs)
        if asked is not None and isinstance(found, torch.Tensor) and there != here and tensors:
            found = found.clone()  # shares nothing with where it came from
    if isinstance(found, torch.Size):
        return found
    return tree_map(lambda value: _placed(value, there), found)


def _plain(value: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def _placed(value: Any, there: bool) -> Any:
    """Say of a result where it lies; what came in and goes out again stays itself."""
    if not isinstance(value, torch.Tensor) or on_gpu(value) == there:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(OnGpu if there else torch.Tensor)


def _asked_device(function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """Where the result is to lie, if the call says it."""
    if name in ("cpu", "cuda") and args and isinstance(args[0], torch.Tensor):
        return torch.device("cpu") if name == "cpu" else DEVICE
    device = kwargs.get("device")
    if name == "to":
        for value in [*args[1:], *kwargs.values()]:
            if isinstance(value, torch.Tensor):
                return DEVICE if on_gpu(value) else torch.device("cpu")
            if isinstance(value, torch.device | str):
                device = value
    return None if device is None else torch.device(device)


def _on_cpu(value: Any) -> Any:
    """What is handed to PyTorch in place of a device."""
    is_gpu = isinstance(value, torch.device | str) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value


def _refuse_mixed(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    here = [value for value in tensors if on_gpu(value)]
    strangers = [value for value in tensors if not on_gpu(value) and value.dim()]
    if not here or name in _ACROSS:
        return
    if name in _INDEXING and on_gpu(args[0]):
        kinds = (torch.int64, torch.bool)
        strangers = [value for value in strangers if value.dtype not in kinds]
    if strangers:
        shapes = ", ".join(str(tuple(value.shape)) for value in strangers)
        raise RuntimeError(f"{name} mixes tensors on {DEVICE} with others on the CPU, {shapes}")


class _NoStream:
    """A stream on which everything has been done at once."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def wait_stream(self, other: Any) -> None:
        """Wait for nothing."""


@contextlib.contextmanager
def fake_gpu(monkeypatch: Any, memory: int = 8 << 30, capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Let there be one GPU for a while.

    Args:
        monkeypatch: Pytest's.
        memory: Free bytes that it says it has.
        capability: Its compute capability.
    """
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "a fake GPU",
        "mem_get_info": lambda device=None: (memory, memory),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "Stream": lambda device=None: _NoStream(),
        "current_stream": lambda device=None: _NoStream(),
        "stream": lambda stream: _Pretence(),  # of the thread that fetches photographs
    }
    move = torch.nn.Module.to

    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        # Of a tensor PyTorch asks where its numbers lie, past all that is pretended.
        return module._apply(lambda own: own.to(*args)) if args and on_gpu(args[0]) else move(module, *args, **kwargs)

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    # A module's parameters that move become others, or they would not say that they moved.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with monkeypatch.context() as patch, _Pretence():
            for name, answer in answers.items():
                patch.setattr(torch.cuda, name, answer)
            patch.setattr(torch.version, "cuda", "none")
            patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
            patch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
            patch.setattr(torch.nn.Module, "to", moved)
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
