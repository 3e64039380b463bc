"""Which shards lie on disk when: a shard is held through work that uses it, piece after piece, and no longer."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from krasis.convert.store import Store
from krasis.errors import FitError

HELD = 2
"""Shards at a time where a store drops them: the one in use and the next, or all that one piece of work needs."""


@dataclass(frozen=True)
class Run:
    """`count` pieces of work from `first` on use a shard, one after the other."""

    shard: str
    first: int
    count: int


def runs(uses: Sequence[frozenset[str]]) -> list[Run]:
    """The runs of every shard, in the order in which they begin."""
    found = []
    for work, use in enumerate(uses):
        before = uses[work - 1] if work else frozenset()
        for shard in sorted(use - before):
            others = (later for later in range(work, len(uses)) if shard not in uses[later])
            found.append(Run(shard, work, next(others, len(uses)) - work))
    return found


def most_bytes(uses: Sequence[frozenset[str]], coming: Callable[[str], int], discard: bool) -> int:
    """Bytes that shards take on disk at the most, where `coming` are those of each that is yet to come."""
    if not discard:
        return sum(map(coming, frozenset().union(*uses)))
    order = runs(uses)
    most = 0
    for work, use in enumerate(uses):
        ahead = [run.shard for run in order if run.first > work and run.shard not in use]
        most = max(most, sum(map(coming, [*use, *ahead[: max(0, HELD - len(use))]])))
    return most


def check_room(store: Store, uses: Sequence[frozenset[str]], pack: Path, need: int) -> None:
    """Raises FitError where `need` more bytes at `pack` and the shards of `store` have no room on their disks."""
    coming = most_bytes(uses, store.missing, store.discard)
    if not coming:
        return
    shared = store.disk.stat().st_dev == pack.stat().st_dev
    free, total = shutil.disk_usage(store.disk).free, coming + need * shared
    if total > free:
        what = f"the checkpoint needs {coming} more bytes" + f", and the pack {need}" * shared
        less = "" if store.discard else f", or --discard-source, for which {most_bytes(uses, store.missing, True)} do"
        raise FitError(what, where=store.disk, expected=f"{free} are free", hint=f"make room{less}")
