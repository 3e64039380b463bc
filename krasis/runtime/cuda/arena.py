"""Device memory that is allocated once, for a purpose of the plan, and given out piece by piece."""

import torch
from torch import Tensor

from krasis.errors import FitError
from krasis.pack.record import SECTION_ALIGN, align


class Arena:
    """`size` bytes for `purpose`."""

    def __init__(self, purpose: str, size: int, device: torch.device) -> None:
        self._purpose, self._used = purpose, 0
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)

    def take(self, size: int) -> Tensor:
        """uint8 [size], aligned to a section. Raises FitError where the plan gave too little."""
        begin = self._used
        self._used = align(begin + size, SECTION_ALIGN)
        if begin + size > self._memory.nbytes:
            expected = f"{self._memory.nbytes} bytes were planned"
            raise FitError(f"{self._purpose} takes {begin + size} bytes", where="VRAM", expected=expected)
        return self._memory[begin : begin + size]


def ring(purpose: str, size: int, buffers: int, device: torch.device) -> list[Tensor]:
    """So many buffers that share `size` bytes; none of no bytes."""
    arena = Arena(purpose, size, device)
    return [arena.take(size // buffers) for _ in range(buffers)] if size else []
