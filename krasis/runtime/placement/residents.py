"""Which experts lie on which device."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krasis.errors import InputError
from krasis.heat.routing import Routing
from krasis.runtime.placement.outline import Outline

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HOST = -1


@dataclass(frozen=True)
class Candidates:
    """Every expert of every layer, in order of layer and number: bytes, and probability that a token chooses it."""

    layer: Ints
    expert: Ints
    bytes: Ints
    probability: Floats

    def hit_rate(self, resident: NDArray[np.bool_]) -> float | None:
        """Share of the expert bytes that a token reads which is on a device, None without experts.

        Where all experts have one size, as in every family so far, it is the share of (token, expert) pairs.
        """
        return self._share(resident, np.ones_like(resident)) if len(resident) else None

    def layer_hit_rates(self, resident: NDArray[np.bool_]) -> dict[int, float]:
        """Layer -> its own."""
        return {layer: self._share(resident, self.layer == layer) for layer in np.unique(self.layer).tolist()}

    def _share(self, resident: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        # Summed in one order and so that all give exactly 1; what no profile saw is a miss unless all are there.
        if resident[among].all():
            return 1.0
        read = np.where(among, self.probability * self.bytes, 0.0)
        return float(read[resident].sum() / read.sum()) if read.any() else 0.0


def candidates(outline: Outline, routing: Routing | None) -> Candidates:
    """By the profile, or all experts of a layer alike. Raises InputError for a profile that does not fit the model."""
    counts = {i: layer.experts.count for i, layer in enumerate(outline.layers) if layer.experts}
    sizes = [layer.experts.bytes for layer in outline.layers if layer.experts]
    number = np.array(list(counts.values()), np.int64)
    return Candidates(
        np.repeat(np.array(list(counts), np.int64), number),
        np.concatenate([np.arange(count) for count in number]) if counts else np.zeros(0, np.int64),
        np.repeat(np.array(sizes, np.int64), number),
        _probabilities(outline.chosen, counts, routing) if counts else np.zeros(0),
    )


def _probabilities(chosen: int, counts: dict[int, int], routing: Routing | None) -> Floats:
    if routing is None:
        return np.concatenate([np.full(count, chosen / count) for count in counts.values()])
    found = {layer: len(seen) for layer, seen in routing.counts.items()}
    if found != counts or not routing.tokens:
        raise InputError("the heat profile has other layers or experts than the model, or no tokens")
    return np.concatenate([routing.counts[layer] / routing.tokens for layer in counts])


def assign(found: Candidates, rooms: list[int]) -> Ints:
    """int64 [experts]: the device of each, or `HOST`. `rooms` are the bytes that each device has for experts.

    An expert of b bytes that a token chooses with probability p saves it p b (1 / miss rate - 1 / device rate) seconds:
    a byte of it saves in proportion to p, which therefore ranks; ties go by layer and number. What no longer fits is
    skipped. Of the devices with room, the one that serves the least so far takes it, so that all serve as long.
    On one device, or with experts of one size, more room never lowers the hit rate: the first expert that only the
    larger room takes reads more than all that the smaller one can put in its place.
    """
    placed = np.full(len(found.bytes), HOST, np.int64)
    left, load = list(rooms), [0.0] * len(rooms)
    sizes, probabilities = found.bytes.tolist(), found.probability.tolist()
    smallest = min(sizes, default=0)
    for index in np.argsort(-found.probability, kind="stable").tolist():
        size = sizes[index]
        free = [device for device, room in enumerate(left) if room >= size]
        if not free:
            if max(left) < smallest:
                break
            continue
        device = min(free, key=lambda device: load[device])
        placed[index] = device
        left[device] -= size
        load[device] += probabilities[index] * size
    return placed
