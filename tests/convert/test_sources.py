"""Shards are fetched in order and not far ahead, hashed once, and refused once they change."""

import hashlib
import os
import shutil
import threading

import pytest

from krasis.convert.pipeline import Conversion
from krasis.convert.sources import AHEAD, Sources
from krasis.convert.store import FolderStore
from krasis.errors import InputError
from krasis.pack.manifest import Settings
from krasis.pack.reader import Pack

SHARDS = ["a", "b", "c", "d"]
SETTINGS = Settings(expert_bits=8, dense_bits=8, group_size=64, layouts=("cpu",))


class SmallStore(FolderStore):
    """Shards of a few bytes; remembers what was fetched and released, and may know hashes or fail."""

    def __init__(self, folder, known=()):
        super().__init__(folder)
        self.fetched, self.released, self.known, self.broken = [], [], dict(known), set()

    def sha256(self, shard):
        return self.known.get(shard)

    def fetch(self, shard, progress):
        if shard in self.broken:
            raise InputError("the line is cut", where=shard)
        self.fetched.append(shard)
        return super().fetch(shard, progress)

    def release(self, shard):
        self.released.append(shard)


@pytest.fixture
def store(tmp_path):
    for shard in SHARDS:
        (tmp_path / shard).write_bytes(shard.encode() * 1000)
    return SmallStore(tmp_path)


def digest(shard):
    return hashlib.sha256(shard.encode() * 1000).hexdigest()


def open_sources(store, *uses, noted=()):
    notes = []
    sources = Sources(store, SHARDS, [frozenset(use) for use in uses], dict(noted), notes.append)
    return sources, notes


def test_every_shard_is_hashed_once(store):
    sources, notes = open_sources(store, "ab", "bc", "cd")
    with sources:
        for work in range(3):
            sources.wait(work)
        assert [found.name for found in sources.hashes()] == SHARDS
    assert sorted((note.file.name, note.file.sha256) for note in notes) == [(shard, digest(shard)) for shard in SHARDS]
    assert store.fetched == SHARDS


def test_shards_are_fetched_a_little_ahead(store):
    sources, _ = open_sources(store, "a", "b", "c", "d")
    with sources:
        sources.wait(0)
        sources.wait(1)
    assert store.fetched in (SHARDS[: 2 + ahead] for ahead in range(AHEAD + 1))


def test_shards_are_released_once_the_next_work_does_without_them(store):
    sources, _ = open_sources(store, "ab", "bc", "ad")
    released = []
    with sources:
        for work, use in enumerate(["ab", "bc", "ad"]):
            sources.wait(work)
            released.append(set(sources.release(frozenset(use))))
    assert released == [{"a"}, {"b", "c"}, {"a", "d"}]
    assert store.fetched == ["a", "b", "c", "a", "d"]


def test_what_an_earlier_run_left_is_released(store):
    sources, _ = open_sources(store, "b")
    with sources:
        sources.wait(0)
    assert store.released[:3] == ["a", "c", "d"]


def test_what_was_noted_is_not_hashed_again(store):
    first, notes = open_sources(store, "ab")
    with first:
        first.wait(0)
        first.check(frozenset("ab"))
    noted = {note.file.name: note for note in notes if note.file.name in "ab"}
    again, new = open_sources(store, "abc", noted=noted)
    with again:
        again.wait(0)
        again.check(frozenset("abc"))
    assert {note.file.name for note in new} in ({"c"}, {"c", "d"})


def test_a_shard_that_nothing_uses_need_not_come_where_its_hash_is_known(store):
    store.known = {"d": digest("d")}
    sources, notes = open_sources(store, "a", "b", "c")
    with sources:
        assert [found.sha256 for found in sources.hashes()] == [digest(shard) for shard in SHARDS]
    assert "d" not in store.fetched
    assert sorted(note.file.name for note in notes) == ["a", "b", "c"]


def test_a_shard_of_another_hash_is_refused(store):
    store.known = {"a": digest("b")}
    sources, notes = open_sources(store, "a")
    with sources, pytest.raises(InputError, match=f"SHA-256 is {digest('a')}.*{digest('b')}"):
        sources.check(frozenset("a"))
    assert not notes


def test_an_error_reaches_who_waits(store):
    store.broken = {"c"}
    sources, _ = open_sources(store, "a", "bc")
    with sources:
        sources.wait(0)
        with pytest.raises(InputError, match="the line is cut"):
            sources.wait(1)


def test_a_shard_that_changes_is_refused(store, tmp_path):
    sources, _ = open_sources(store, "ab")
    with sources:
        sources.wait(0)
        sources.check(frozenset("ab"))
        os.utime(tmp_path / "b", ns=(0, 0))
        sources.check(frozenset("a"))
        with pytest.raises(InputError, match=r"changed while it was converted.*\(b\)"):
            sources.check(frozenset("b"))


def test_leaving_early_ends_the_thread(store):
    sources, _ = open_sources(store, *SHARDS)
    with sources:
        pass
    assert "sources" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def hub(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / "hub")


class Meddle:
    """Progress that does something once so many bytes were converted."""

    def __init__(self, after, action):
        self._left, self._action = after, action

    def start(self, task, total_bytes):
        self._counts = task == "converting"

    def advance(self, done_bytes):
        if self._counts and self._left > 0:
            self._left -= done_bytes
            if self._left <= 0:
                self._action()


def touch(path):
    """A new time of change on the same content."""
    os.utime(path)


def flip(path):
    """Another weight, of the same size."""
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def stop():
    raise InterruptedError


@pytest.mark.parametrize("meddle", [touch, flip])
def test_a_source_that_changes_meanwhile_is_detected(meddle, hub, tmp_path):
    shard = hub / "model-00002-of-00002.safetensors"
    with pytest.raises(InputError, match="changed while it was converted"):
        Conversion(hub, SETTINGS).run(tmp_path / "pack", Meddle(1, lambda: meddle(shard)))
    assert not (tmp_path / "pack").exists()


def states(folder):
    found = ((path.name, path.stat()) for path in folder.glob("*.bin"))
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found}


@pytest.mark.parametrize(("meddle", "kept"), [(touch, True), (flip, False)])
def test_a_resumed_run_tells_a_touched_source_from_a_changed_one(meddle, kept, hub, tmp_path):
    conversion, pack = Conversion(hub, SETTINGS), tmp_path / "pack"
    with pytest.raises(InterruptedError):
        conversion.run(pack, Meddle(conversion.bytes * 0.7, stop))
    before = states(tmp_path / "pack.partial")
    assert before
    meddle(hub / "model-00001-of-00002.safetensors")
    again = Conversion(hub, SETTINGS)
    again.run(pack, Meddle(0, stop))
    assert kept == (before.items() <= states(pack).items())
    hashes = {origin.name: origin.sha256 for origin in Pack(pack).manifest.source}
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in hub.glob("*.safetensors")}
