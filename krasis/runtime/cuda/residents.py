"""The experts that lie in device memory, and the table that says where."""

from collections.abc import Iterable

import torch
from torch import Tensor

from krasis.pack.reader import Pack
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.placement.outline import LAYOUT


def segment_of(layer: int) -> str:
    return f"layers.{layer}.experts"


class Residents:
    """`table[layer]`, int64 [experts] on the device: the address of an expert's record, 0 where it is not there.

    `where[layer]`, int32, is 0 for those that are there, whom `hot[layer]` lists, and -1 for the `cold[layer]`.
    """

    def __init__(
        self, pack: Pack, experts: dict[int, int], chosen: Iterable[tuple[int, int]], arena: Arena, device: torch.device
    ) -> None:
        self._memory = arena  # what the addresses point into
        addresses = {layer: [0] * count for layer, count in experts.items()}
        for layer, expert in chosen:
            records, size = records_of(pack, layer)
            place = arena.take(size)
            place.copy_(records[expert * size : (expert + 1) * size], non_blocking=True)
            addresses[layer][expert] = place.data_ptr()
        self.table: dict[int, Tensor] = {
            layer: torch.tensor(found, dtype=torch.int64, device=device) for layer, found in addresses.items()
        }
        self.where: dict[int, Tensor] = {
            layer: torch.tensor([0 if at else -1 for at in found], dtype=torch.int32, device=device)
            for layer, found in addresses.items()
        }
        self.hot = {layer: [e for e, at in enumerate(found) if at] for layer, found in addresses.items()}
        self.cold = {layer: [e for e, at in enumerate(found) if not at] for layer, found in addresses.items()}


def records_of(pack: Pack, layer: int) -> tuple[Tensor, int]:
    """All records of a layer's experts, uint8, and the bytes of one."""
    name = segment_of(layer)
    return pack.records(name, LAYOUT), pack.segment(name, LAYOUT).record_bytes
