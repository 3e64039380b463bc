"""The experts that lie in device memory, and the tables that say where."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krasis.pack.reader import Pack
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.placement.outline import LAYOUT

Residency = Literal["follow", "static"]
"""Whether residents follow the text, or stay as they were placed."""


def segment_of(layer: int) -> str:
    return f"layers.{layer}.experts"


class Residents:
    """`table[layer]`, int64 [experts] on the device: the address of an expert's record, 0 where it is not there.

    `where[layer]`, int32, is 0 for those that are there and -1 for the others. An expert's number counts through the
    layers in their order. Where residents are `moving`, `decoded[layer]` and `prefilled[layer]`, int32, count what
    tokens of each kind chose, and any layer may come to lack any expert.
    """

    def __init__(
        self,
        pack: Pack,
        experts: dict[int, int],
        chosen: Iterable[tuple[int, int]],
        arena: Arena,
        device: torch.device,
        *,
        moving: bool = False,
    ) -> None:
        self._memory = arena  # what the addresses point into
        ends = np.cumsum(list(experts.values()))
        layers = zip(experts.items(), ends, strict=True)
        self._slices = {layer: slice(end - count, end) for (layer, count), end in layers}
        self.addresses: NDArray[np.int64] = np.zeros(sum(experts.values()), np.int64)
        for layer, expert in chosen:
            records, size = records_of(pack, layer)
            place = arena.take(size)
            place.copy_(records[expert * size : (expert + 1) * size], non_blocking=True)
            self.addresses[self._slices[layer].start + expert] = place.data_ptr()
        self._table = torch.from_numpy(self.addresses.copy()).to(device)
        self._where = -(self._table == 0).int()
        self.table, self.where = self._by_layer(self._table), self._by_layer(self._where)
        self.moving, self.moves = moving, 0
        self.uses = torch.zeros(2, len(self.addresses), dtype=torch.int32, device=device)
        self.decoded: Mapping[int, Tensor] = self._by_layer(self.uses[0]) if moving else {}
        self.prefilled: Mapping[int, Tensor] = self._by_layer(self.uses[1]) if moving else {}
        self.partial = set(experts) if moving else {layer for layer, cold in self.cold.items() if cold}

    @property
    def hot(self) -> dict[int, list[int]]:
        """Layer -> who is there."""
        return {layer: np.flatnonzero(self.addresses[of]).tolist() for layer, of in self._slices.items()}

    @property
    def cold(self) -> dict[int, list[int]]:
        """Layer -> who is not."""
        return {layer: np.flatnonzero(self.addresses[of] == 0).tolist() for layer, of in self._slices.items()}

    def addresses_of(self, layer: int) -> NDArray[np.int64]:
        """What `table[layer]` holds once the device has done what it was told."""
        return self.addresses[self._slices[layer]]

    def put(self, numbers: NDArray[np.int64], addresses: NDArray[np.int64]) -> None:
        """From here on in the current stream these experts lie there, or nowhere (0). The host does not wait."""
        self.addresses[numbers] = addresses
        self.moves += 1
        entries = torch.from_numpy(np.stack([numbers, addresses]))
        if self._table.is_cuda:
            entries = entries.pin_memory().to(self._table.device, non_blocking=True)
        number, address = entries
        self._table.index_copy_(0, number, address)
        self._where.index_copy_(0, number, -(address == 0).int())

    def _by_layer(self, flat: Tensor) -> dict[int, Tensor]:
        return {layer: flat[of] for layer, of in self._slices.items()}


def records_of(pack: Pack, layer: int) -> tuple[Tensor, int]:
    """All records of a layer's experts, uint8, and the bytes of one."""
    name = segment_of(layer)
    return pack.records(name, LAYOUT), pack.segment(name, LAYOUT).record_bytes
