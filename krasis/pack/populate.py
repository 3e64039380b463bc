"""Bring pages of a mapping into memory by one call: a fault each would take longer than what is done with them."""

import ctypes
import mmap

from torch import Tensor

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
# Python's own madvise keeps its lock; calls through ctypes let other threads run.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def populate(data: Tensor) -> None:
    """Make `data`, a part of a mapping, ready to be written. Where the system can't, pages come one by one."""
    first = data.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = data.data_ptr() + data.nbytes - first
    _libc.madvise(first, size, _POPULATE_WRITE)
