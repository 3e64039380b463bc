"""The pack as the GPU's pinned store: mapped pages are registered where they lie, and never copied on the host."""

import torch
from torch import Tensor

from krasis.errors import KrasisError
from krasis.native.cuda.host import Registered
from krasis.pack.reader import Pack


class HostStore:
    """The host memory of a pack as `device` reaches it.

    `notes` says so where the system refuses to register it. The device can't read it then: all must be copied there.
    """

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.notes: list[str] = []
        self._registered: list[Registered] = []
        try:
            for memory, read_only in pack.memory():
                self._registered.append(Registered(memory, device, read_only=read_only))
        except KrasisError as error:
            self.close()
            self.notes.append(
                f"the pack can't be registered with the GPU, so prompts and tokens take several times as long: {error}"
            )

    @property
    def registered(self) -> bool:
        """Whether kernels can read the pack where it lies."""
        return bool(self._registered)

    def address(self, part: Tensor) -> int:
        """That a view of the pack has on the device; its own where it is not registered."""
        at = part.data_ptr()
        for found in self._registered:
            if 0 <= at - found.memory.data_ptr() < found.memory.nbytes:
                return found.address_of(part)
        return at

    def close(self) -> None:
        for found in self._registered:
            found.close()
        self._registered.clear()
