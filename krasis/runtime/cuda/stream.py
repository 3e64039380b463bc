"""Experts that pass through the device: a ring of buffers that copies fill while kernels read the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krasis.native.cuda.host import copy
from krasis.pack.reader import Pack
from krasis.runtime.cuda.lanes import Event, Lanes
from krasis.runtime.cuda.passes import Way
from krasis.runtime.cuda.residents import Residents, records_of
from krasis.runtime.cuda.staging import Staging
from krasis.runtime.cuda.store import HostStore

Run = tuple[int, int, int]
"""Bytes into a layer's records, bytes into a buffer, and how many bytes."""


@dataclass(frozen=True)
class Part:
    """Experts of a layer that pass through one buffer together: `experts` int32 [n] on the device, and the `runs` of
    bytes that they are, which lie in the buffer without gaps.
    """

    experts: Tensor
    runs: tuple[Run, ...]


class Stream:
    """Hands out a layer's experts part by part: first the residents, then what is copied meanwhile.

    `way` is how the tokens at hand meet what is not resident; `copied` counts bytes.
    """

    def __init__(
        self, pack: Pack, store: HostStore, residents: Residents, ring: Sequence[Tensor], lanes: Lanes
    ) -> None:
        self._store, self._ring, self._lanes = store, ring, lanes
        self._device = next(iter(residents.table.values())).device
        self._layers = list(residents.table)
        found = {layer: records_of(pack, layer) for layer in self._layers}
        self._records = {layer: records for layer, (records, _) in found.items()}
        self._sizes = {layer: size for layer, (_, size) in found.items()}
        self._resident = residents
        self._turn = 0
        self._read: list[Event] = [None] * len(ring)
        self._filled: list[Event] = [None] * len(ring)
        # Where the device can't reach the pack, what it is to get is gathered first.
        self._staging = None if store.registered else Staging([len(buffer) for buffer in ring], self._device)
        self.copied = 0
        self.way: Way = "whole"
        self._plan_whole()

    def _plan_whole(self) -> None:
        """Parts of all cold experts of all layers; buffers take turns over layers, so places never change."""
        self._planned = self._resident.moves
        self._whole: dict[int, list[Part]] = {}
        self._addresses: dict[int, NDArray[np.int64]] = {}
        self._tables: dict[int, Tensor] = {}
        turn, self._cold = 0, self._resident.cold
        for layer in self._layers:
            addresses = self._resident.addresses_of(layer).copy()
            parts = []
            for experts in self._shares(layer, self._cold[layer]):
                self._assign(layer, experts, turn, addresses)
                parts.append(self._part(layer, experts))
                turn += 1
            self._whole[layer] = parts
            self._addresses[layer] = addresses
            self._tables[layer] = self._table(addresses)
        self._hot = {layer: self._list(experts) for layer, experts in self._resident.hot.items()}
        self._queue: list[tuple[int, Part]] = [(layer, part) for layer in self._layers for part in self._whole[layer]]

    def begin(self, way: Way) -> None:
        """Before the first layer of a pass. Where whole layers are to come, the ring is filled."""
        self.way, self._next, self._turn = way, 0, 0
        if way != "few" and self._planned != self._resident.moves:
            self._plan_whole()
        if way == "whole":
            for _ in self._ring:
                self._copy_next()

    def parts(self, layer: int, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All experts that `ids` choose: int32 lists of them and int64 [experts] tables of where they lie, both on the
        device. Each is there for the kernels that follow.
        """
        if len(self._hot[layer]):
            yield self._hot[layer], self._tables[layer]
        if self.way == "touched":
            yield from self._touched(layer, ids)
            return
        for part in self._whole[layer]:
            yield from self._hand_out(part, self._tables[layer])
            self._copy_next()

    def _touched(self, layer: int, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = set(torch.unique(ids).tolist())
        addresses = self._addresses[layer].copy()
        queue: list[Part] = []
        for experts in self._shares(layer, [expert for expert in self._cold[layer] if expert in chosen]):
            self._assign(layer, experts, self._next + len(queue), addresses)
            queue.append(self._part(layer, experts))
        table = self._table(addresses)
        for part in queue[: len(self._ring)]:
            self._copy_into_next(layer, part)
        for i, part in enumerate(queue):
            yield from self._hand_out(part, table)
            if i + len(self._ring) < len(queue):
                self._copy_into_next(layer, queue[i + len(self._ring)])

    def _hand_out(self, part: Part, table: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        buffer = self._turn % len(self._ring)
        self._lanes.wait(self._filled[buffer])
        yield part.experts, table
        self._read[buffer] = self._lanes.mark()
        self._turn += 1

    def _copy_next(self) -> None:
        if self._next == len(self._queue):
            return
        self._copy_into_next(*self._queue[self._next])

    def _copy_into_next(self, layer: int, part: Part) -> None:
        buffer = self._next % len(self._ring)
        self._next += 1
        runs, source = self._source(layer, part, buffer)
        to = self._ring[buffer].data_ptr()
        with self._lanes.copying(after=self._read[buffer]):
            for begin, at, size in runs:
                copy(self._device, to + at, source + begin, size)
                self.copied += size
            self._filled[buffer] = self._lanes.mark()

    def _source(self, layer: int, part: Part, buffer: int) -> tuple[tuple[Run, ...], int]:
        """What is to be copied, and the address that it begins at."""
        if self._staging is None:
            return part.runs, self._store.address(self._records[layer])
        self._lanes.finish(self._filled[buffer])
        source = self._staging.fill(buffer, self._records[layer], part.runs)
        return ((0, 0, sum(size for _, _, size in part.runs)),), source

    def _shares(self, layer: int, experts: Sequence[int]) -> Iterator[Sequence[int]]:
        """Experts in runs that fit a buffer."""
        most = max(1, min(len(buffer) for buffer in self._ring) // self._sizes[layer]) if self._ring else 1
        return (experts[i : i + most] for i in range(0, len(experts), most))

    def _assign(self, layer: int, experts: Sequence[int], turn: int, addresses: NDArray[np.int64]) -> None:
        base = self._ring[turn % len(self._ring)].data_ptr()
        addresses[list(experts)] = base + self._sizes[layer] * np.arange(len(experts))

    def _part(self, layer: int, experts: Sequence[int]) -> Part:
        size, numbers = self._sizes[layer], np.array(experts)
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(numbers))
        runs = (size * np.stack([numbers[starts], starts, lengths], axis=1)).tolist()
        return Part(self._list(experts), tuple((begin, at, length) for begin, at, length in runs))

    def _table(self, addresses: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(addresses).to(self._device)

    def _list(self, experts: Sequence[int]) -> Tensor:
        return torch.tensor(list(experts), dtype=torch.int32, device=self._device)
