"""The host's memory as a device reaches it, and copies from there."""

import ctypes

import torch
from torch import Tensor

from krasis.native.cuda.library import INT, LONG, POINTER, Function

_register = Function("krasis_cuda_register", POINTER, LONG, INT, POINTER)
_unregister = Function("krasis_cuda_unregister", POINTER)
_copy = Function("krasis_cuda_copy", POINTER, POINTER, LONG)


class Registered:
    """Contiguous host memory that `device` reads where it lies, until this is closed. `address` is what it has there.

    Raises KrasisError where the system refuses.
    """

    def __init__(self, memory: Tensor, device: torch.device, *, read_only: bool) -> None:
        self.memory, self._device = memory, device
        found = ctypes.c_void_p()
        _register(device, memory, memory.nbytes, int(read_only), ctypes.addressof(found))
        assert found.value is not None
        self.address: int = found.value
        self._closed = False

    def address_of(self, part: Tensor) -> int:
        """Of a view of the memory."""
        return self.address + part.data_ptr() - self.memory.data_ptr()

    def close(self) -> None:
        """Once more is no matter."""
        if not self._closed:
            _unregister(self._device, self.memory)
        self._closed = True


def copy(device: torch.device, to: int, source: int, size: int) -> None:
    """Copy `size` bytes between two addresses, in order of the current stream; the host does not wait."""
    _copy(device, to, source, size)
