"""Anonymous memory in huge pages: what a mapped file's pages of 4 KiB cost is not paid there."""

import contextlib
import mmap

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21


def anonymous(size: int) -> Tensor:
    """uint8 [size], zeros, on a border of huge pages. Pages come at the first touch, huge where the system can.

    Raises OSError where the system refuses as much address space.
    """
    # Shared anonymous memory, Python's default, is a file to the kernel, and huge pages of it a matter of their own.
    whole = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without huge pages
        whole.madvise(mmap.MADV_HUGEPAGE)
    data = torch.frombuffer(whole, dtype=torch.uint8)
    first = -data.data_ptr() % HUGE_PAGE
    return data[first : first + size]
