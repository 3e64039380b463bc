"""Pinned buffers between memory that the GPU can't reach and the GPU: for a pack that can't be registered."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Staging:
    """A buffer of the host, of `sizes` bytes each, for every buffer of a ring."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]

    def fill(self, buffer: int, records: Tensor, runs: Sequence[tuple[int, int, int]]) -> int:
        """Gather runs (bytes into the records, bytes into the buffer, bytes) in a buffer, whose address is returned."""
        found = self._buffers[buffer]
        for begin, at, size in runs:
            found[at : at + size].copy_(records[begin : begin + size])
        return found.data_ptr()
