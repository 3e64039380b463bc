"""How the experts that a token misses are divided, in tables that the device reads."""

from collections.abc import Callable

import torch

from krasis.native.cuda.experts import CUT
from krasis.native.cuda.mailbox import Split
from krasis.native.server import Work
from krasis.pack.reader import Pack
from krasis.runtime.cuda.refit import Refit
from krasis.runtime.cuda.residents import Residents, records_of, segment_of
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.rates import Rates


class Splits:
    """`of` is layer -> its split for one token, for layers where some experts may be missed.

    `divide` is `krasis.runtime.cuda.division` of as many experts as a token chooses; layers have `passing` bytes copied
    to the device besides. There are no splits where the device does not reach the experts of the `store`.
    """

    def __init__(
        self,
        pack: Pack,
        store: HostStore,
        residents: Residents,
        divide: Callable[[int, int, Rates, float], list[int]],
        rates: Rates,
        passing: float,
    ) -> None:
        self.of: dict[int, Split] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._divide, self._passing, self._refit = divide, passing, Refit(rates)
        for layer in residents.partial if store.registered else ():
            records, size = records_of(pack, layer)
            w2 = next(tensor for tensor in pack.segment(segment_of(layer), LAYOUT).tensors if tensor.name == "w2")
            self._sizes[layer] = size, w2.padded_shape[1] // CUT
            cut, table = self._cut(layer), residents.table[layer]
            self.of[layer] = Split(cut.to(table.device), table, store.address(records), size)

    def adapt(self, done: Work) -> None:
        """Between sequences: divide by rates that tell what the CPU did since the last time, where they differ."""
        if self._refit.refit(done):
            for layer, split in self.of.items():
                split.cut.copy_(self._cut(layer))

    def _cut(self, layer: int) -> torch.Tensor:
        divided = self._divide(*self._sizes[layer], self._refit.rates, self._passing)
        return torch.tensor(divided, dtype=torch.int32) * CUT
