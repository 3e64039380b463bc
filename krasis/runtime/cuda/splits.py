"""How the experts that a token misses are divided, in tables that the device reads."""

import torch

from krasis.native.cuda.experts import CUT
from krasis.native.cuda.mailbox import Split
from krasis.pack.reader import Pack
from krasis.runtime.cuda.division import Divide
from krasis.runtime.cuda.residents import Residents, records_of, segment_of
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.rates import Rates


class Splits:
    """`of` is layer -> its split, of tokens that choose `chosen` experts, for layers where some may be missed.

    There are none where the device does not reach the experts of the `store`.
    """

    def __init__(self, pack: Pack, store: HostStore, residents: Residents, chosen: int, device: torch.device) -> None:
        self.of: dict[int, Split] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._chosen = chosen
        for layer in residents.partial if store.registered else ():
            records, size = records_of(pack, layer)
            cut = torch.zeros(chosen + 1, dtype=torch.int32, device=device)
            self.of[layer] = Split(cut, residents.table[layer], store.address(records), size)
            w2 = next(tensor for tensor in pack.segment(segment_of(layer), LAYOUT).tensors if tensor.name == "w2")
            self._sizes[layer] = size, w2.padded_shape[1] // CUT

    def divide(self, divide: Divide, rates: Rates, passing: float) -> None:
        """Write what is to be whose from the device's next call on, where a layer has `passing` bytes copied."""
        for layer, (size, parts) in self._sizes.items():
            asked = divide(self._chosen, size, parts, rates, passing)
            self.of[layer].cut.copy_(torch.tensor(asked, dtype=torch.int32) * CUT)
