"""Residents that follow the text: what it misses takes the slots of what it does not use, behind decode's back."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from krasis.heat.following import EVERY, STEPS, Following
from krasis.native.cuda.host import copy
from krasis.pack.reader import Pack
from krasis.runtime.cuda.lanes import Event, Lanes
from krasis.runtime.cuda.residents import Residency, Residents, records_of
from krasis.runtime.cuda.store import HostStore


def follows(residency: Residency, resident: int, experts: dict[int, int], store: HostStore) -> tuple[bool, list[str]]:
    """Whether residents are to follow the text, and notes: some, but not all, and where the device can fetch others."""
    if residency == "static" or not 0 < resident < sum(experts.values()):
        return False, []
    if not store.registered:
        return False, ["resident experts stay as they were placed, for the GPU can't fetch others behind decode"]
    return True, []


@dataclass(frozen=True)
class _Counted:
    """Uses on their way to the host, of so many decoded and prefilled tokens since those before."""

    arrived: Event
    decoded: int
    prefilled: int


@dataclass(frozen=True)
class _Coming:
    """Experts, [n], on their way to slots at these addresses."""

    experts: NDArray[np.int64]
    slots: NDArray[np.int64]
    arrived: Event


class Follow:
    """Exchanges residents, whose uses the device counts, as `krasis.heat.following` says. `rates` are of all experts,
    uses a token.

    Whoever leaves is gone from the tables before its slot is written to, and whoever comes enters them once it is
    there, both between steps. When, depends on tokens alone, not on time: the same tokens always meet the same
    residents.
    """

    def __init__(
        self, pack: Pack, store: HostStore, residents: Residents, rates: NDArray[np.float64], lanes: Lanes
    ) -> None:
        self._residents, self._lanes, self._device = residents, lanes, residents.uses.device
        sizes, sources = [], []
        for layer, table in residents.table.items():
            records, size = records_of(pack, layer)
            sizes.append(np.full(len(table), size))
            sources.append(store.address(records) + size * np.arange(len(table)))
        self._sizes, self._sources = np.concatenate(sizes), np.concatenate(sources)
        self._first = residents.addresses != 0
        self._policy = Following(self._sizes, self._first, rates)
        residents.uses.zero_()
        pinned = self._device.type == "cuda"
        self._host = torch.zeros(residents.uses.shape, dtype=torch.int32, pin_memory=pinned)
        self._seen = self._host.numpy().copy()
        self._decoded = self._prefilled = self._steps = self.copied = 0
        self._counted: _Counted | None = None
        self._coming: _Coming | None = None

    def ran(self, tokens: int, *, prompt: bool) -> None:
        """The device was told to run so many tokens: of a prompt, which is only counted, or a few as in decode."""
        if prompt:
            self._prefilled += tokens
            return
        self._decoded += tokens
        self._steps += 1
        if self._coming is not None:
            if self._steps >= STEPS:
                self.settle()
        elif self._counted is not None:
            self._exchange(self._counted)
        elif self._prefilled or self._decoded >= EVERY:
            self._count()

    def settle(self) -> None:
        """Whoever is coming has its place, as far as what the device is told from now on can see."""
        if self._coming is None:
            return
        self._lanes.wait(self._coming.arrived)
        self._residents.put(self._coming.experts, self._coming.slots)
        self._coming = None

    def missed_if_static(self) -> int:
        """Pairs of tokens run a few at a time that would have missed had nothing moved; waits for the device."""
        return int(self._residents.uses[0].cpu().numpy()[~self._first].sum())

    def _count(self) -> None:
        self._host.copy_(self._residents.uses, non_blocking=True)
        self._counted = _Counted(self._lanes.mark(), self._decoded, self._prefilled)
        self._decoded = self._prefilled = 0

    def _exchange(self, counted: _Counted) -> None:
        self._counted = None
        self._lanes.finish(counted.arrived)
        (decoded, prefilled), self._seen = self._host.numpy() - self._seen, self._host.numpy().copy()
        if counted.prefilled:
            self._policy.saw(prefilled, counted.prefilled, together=True)
        if counted.decoded:
            self._policy.saw(decoded, counted.decoded)
        come, leave = self._policy.exchange()
        if len(come):
            self._steps = 0
            self._coming = self._fetch(come, leave)

    def _fetch(self, come: NDArray[np.int64], leave: NDArray[np.int64]) -> _Coming:
        slots = self._residents.addresses[leave]
        self._residents.put(leave, np.zeros_like(slots))
        sources, sizes = self._sources[come], self._sizes[come]
        with self._lanes.copying(after=self._lanes.mark()):
            for slot, source, size in zip(slots.tolist(), sources.tolist(), sizes.tolist(), strict=True):
                copy(self._device, slot, source, size)
            self.copied += int(sizes.sum())
            return _Coming(come, slots, self._lanes.mark())
