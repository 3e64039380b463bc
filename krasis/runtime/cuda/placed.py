"""A pack whose segments lie on the device, or in the host's memory where the plan left them there."""

from collections.abc import Mapping

from torch import Tensor

from krasis.pack.reader import Pack
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.placement.outline import LAYOUT, dense_segments
from krasis.runtime.weights import PLAIN
from krasis.runtime.work import HEAD

BASE = "base"


class PlacedPack:
    """Implements `krasis.runtime.weights.Stored`."""

    def __init__(self, pack: Pack, records: Mapping[str, Tensor], norm: Tensor) -> None:
        """`records` maps segments to where their records lie now, `norm` is the last norm."""
        self.path, self.layouts_of, self.segment = pack.path, pack.layouts_of, pack.segment
        self._pack, self._records, self._norm = pack, records, norm

    def arrays(self, name: str, layout: str, index: int = 0) -> dict[tuple[str, str], Tensor]:
        """See `Pack.arrays`."""
        if name in self._records:
            return self._pack.views(name, layout, self._records[name], index)
        found = self._pack.arrays(name, layout, index)
        return found | {("norm", "values"): self._norm} if name == BASE else found


def place_dense(pack: Pack, layers: tuple[int, ...], *, head: bool, arena: Arena) -> PlacedPack:
    """Copy the dense weights of `layers`, the last norm, and the head where `head` says so."""
    stored = pack.arrays(BASE, PLAIN)["norm", "values"]
    norm = arena.take(stored.nbytes).view(stored.dtype)
    norm.copy_(stored)
    records = {}
    dense = (name for layer in layers for name in dense_segments(layer) if name in pack.layouts_of)
    for name in [*dense, *([HEAD] if head else [])]:
        layout = LAYOUT if LAYOUT in pack.layouts_of[name] else PLAIN
        found = pack.records(name, layout)
        records[name] = arena.take(found.nbytes)
        records[name].copy_(found, non_blocking=True)
    return PlacedPack(pack, records, norm)
