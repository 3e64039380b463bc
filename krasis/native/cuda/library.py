"""The functions of libkrasis_cuda, and of its emulation on the CPU."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from krasis.errors import KrasisError
from krasis.native.library import cpu_library, open_library

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""As the C ABI numbers them: `krasis_type`."""

INT, LONG, FLOAT, POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

_NAMES = {"cuda": "libkrasis_cuda.so", "cpu": "libkrasis_cuda_emulated.so"}


@cache
def library(device: str) -> ctypes.CDLL:
    """That of a type of torch device: "cuda", which needs no driver to open, or "cpu", the emulated device.

    Raises KrasisError where it is missing, can't be opened or has another ABI.
    """
    return open_library(_NAMES[device], {"krasis_cuda_abi_version": (INT, [])}, "krasis_cuda_abi_version")


class Function:
    """A function of the C ABI that takes `arguments`, and then a stream: the current one.

    Tensors are passed as their addresses. All of them must be on the device that is called for, which must be the
    current one where there are several. Raises KrasisError where the function refuses.
    """

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self._bound: dict[str, Any] = {}

    def __call__(self, device: torch.device, *arguments: Any) -> None:
        bound = self._bound.get(device.type) or self._bind(device.type)
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        status = bound(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments), stream)
        if status:
            raise KrasisError(f"{cpu_library().krasis_strerror(status).decode()} ({self.name})")

    def _bind(self, device: str) -> Any:
        bound = getattr(library(device), self.name)
        bound.restype, bound.argtypes = INT, [*self.arguments, POINTER]
        self._bound[device] = bound
        return bound
