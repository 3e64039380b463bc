"""A pack whose segments lie on the device, or in the host's memory where the plan left them there."""

from collections.abc import Mapping

from torch import Tensor

from krasis.pack.reader import Pack
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.weights import PLAIN

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


def place_dense(pack: Pack, passing: Mapping[str, Tensor], arena: Arena) -> PlacedPack:
    """Copy dense weights to the device, but for segments that pass through it, whose places are given."""
    stored = pack.arrays(BASE, PLAIN)["norm", "values"]
    norm = arena.take(stored.nbytes).view(stored.dtype)
    norm.copy_(stored)
    records = dict(passing)
    for name in pack.layouts_of:
        if name not in passing and name != BASE and not name.endswith(".experts"):
            found = stored_records(pack, name)
            records[name] = arena.take(found.nbytes)
            records[name].copy_(found, non_blocking=True)
    return PlacedPack(pack, records, norm)


def stored_records(pack: Pack, name: str) -> Tensor:
    """All records of a segment in the host's memory, uint8, as the device reads them."""
    return pack.records(name, LAYOUT if LAYOUT in pack.layouts_of[name] else PLAIN)
