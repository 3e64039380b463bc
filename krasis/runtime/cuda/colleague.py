"""The CPU as the GPU's colleague: what of a few tokens' experts is not on the device is posted to it."""

import torch

from krasis.models.family import Activation
from krasis.native.cuda.gemm import MOST_FEW
from krasis.native.cuda.mailbox import TIMEOUT, DeviceMailbox
from krasis.native.moe import NativeExperts
from krasis.native.server import Mailbox, Server, Work
from krasis.pack.reader import Pack
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.weights import PackWeights


class Colleague:
    """Answers posts of tokens that choose `chosen` experts, for the layers that were assigned to it once it is open.

    They are made through `mailbox`, a layer going by its `number`. One that is not answered within `timeout` seconds is
    given up.
    """

    def __init__(
        self, cpu: CpuBackend, chosen: int, hidden: int, device: torch.device, timeout: float = TIMEOUT
    ) -> None:
        self._cpu = cpu
        self.number: dict[int, int] = {}
        self._layers: list[NativeExperts] = []
        self._box = Mailbox(MOST_FEW, chosen, hidden)
        self.mailbox = DeviceMailbox(self._box, device, timeout)
        self._server: Server | None = None

    def assign(self, layer: int, segment: str, pack: Pack, activation: Activation) -> None:
        """Take care of the experts of a segment, of `layer`."""
        experts = PackWeights(pack, self._cpu, layout=LAYOUT).experts(segment, activation)
        assert isinstance(experts, NativeExperts)
        self.number[layer] = len(self._layers)
        self._layers.append(experts)

    def open(self) -> None:
        """Answer from now on."""
        self._server = Server(self._cpu.pool, self._layers, self._box)

    def wake(self) -> None:
        """Posts will come soon."""
        if self._server is not None:
            self._server.wake()

    @property
    def work(self) -> Work:
        """What the CPU did so far."""
        return Work() if self._server is None else self._server.work

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.mailbox.close()
