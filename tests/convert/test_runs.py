"""Where a store drops shards, no more lie on disk at a time than two, or than one piece of work needs."""

import hashlib
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from krasis.convert.runs import HELD, Run, most_bytes, runs
from krasis.convert.sources import Sources

SHARDS = "abcdef"
uses = st.lists(st.frozensets(st.sampled_from(SHARDS), min_size=1, max_size=3), min_size=1, max_size=8)


class DroppingStore:
    """Shards that come and go; remembers the most that were there at a time."""

    where, origin, discard = "nowhere", "", True

    def __init__(self, file):
        self._file = file
        self._lock = threading.Lock()
        self.here, self.most = set(), 0

    def fetch(self, shard, progress):
        with self._lock:
            self.here.add(shard)
            self.most = max(self.most, len(self.here))
        return self._file

    def release(self, shard):
        with self._lock:
            self.here.discard(shard)

    def sha256(self, shard):
        return hashlib.sha256(self._file.read_bytes()).hexdigest()

    def size(self, shard):
        return self._file.stat().st_size

    def identity(self, shard):
        return shard

    def full_name(self, shard):
        return shard

    def close(self):
        pass


def test_runs_in_order_of_their_beginning():
    found = runs([frozenset("ac"), frozenset("a"), frozenset("ab"), frozenset("c")])
    assert found == [Run("a", 0, 3), Run("c", 0, 1), Run("b", 2, 1), Run("c", 3, 1)]


@given(uses)
def test_runs_are_what_is_used(uses):
    spread = [(run.shard, work) for run in runs(uses) for work in range(run.first, run.first + run.count)]
    assert sorted(spread) == sorted((shard, work) for work, use in enumerate(uses) for shard in use)


@settings(max_examples=60)
@given(uses, st.integers(0, 3))
def test_shards_on_disk_are_those_in_use_and_few_more(uses, lag):
    """Pieces of work end `lag` pieces later, unless they must make room."""
    store = DroppingStore(Path(__file__))
    pending = []

    def end(count):
        for use in pending[:count]:
            sources.check(use)
            assert use <= store.here
            sources.release(use)
        del pending[:count]

    with Sources(store, SHARDS, uses, {}, lambda note: None) as sources:
        for work, use in enumerate(uses):
            if sources.crowded(work):
                end(len(pending))
            sources.wait(work)
            assert use <= store.here
            pending.append(use)
            end(len(pending) - lag if len(pending) > lag else 0)
        end(len(pending))
        assert {found.name for found in sources.hashes()} == set(SHARDS)
    assert not store.here
    assert store.most <= max(HELD, *map(len, uses))
    assert store.most <= most_bytes(uses, lambda shard: 1, True)


@given(uses)
def test_bytes_of_all_where_none_are_dropped(uses):
    sizes = {shard: 1 << place for place, shard in enumerate(SHARDS)}
    assert most_bytes(uses, sizes.get, False) == sum(sizes[shard] for shard in frozenset().union(*uses))
