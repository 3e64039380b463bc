"""The host's memory as a device reaches it, and copies from there."""

import ctypes
import weakref

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
        self.memory = memory
        found = ctypes.c_void_p()
        _register(device, memory, memory.nbytes, int(read_only), ctypes.addressof(found))
        assert found.value is not None
        self.address: int = found.value
        # Memory that is given back while it is registered would have the device read what was there before.
        self._unregister = weakref.finalize(self, _unregister, device, memory)
        self._unregister.atexit = False

    def address_of(self, part: Tensor) -> int:
        """Of a view of the memory."""
        return self.address + part.data_ptr() - self.memory.data_ptr()

    def close(self) -> None:
        self._unregister()


def copy(device: torch.device, to: int, source: int, size: int) -> None:
    """Copy `size` bytes between two addresses, in order of the current stream; the host does not wait."""
    _copy(device, to, source, size)
