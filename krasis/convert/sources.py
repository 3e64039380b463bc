"""The shards of a checkpoint while it is converted: each fetched, hashed and noted once, while others are used."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from krasis.convert.store import Store
from krasis.errors import InputError
from krasis.pack.manifest import FileHash
from krasis.pack.writer import SourceNote

AHEAD = 1
"""Shards fetched and hashed beyond those that were asked for. Hashing warms the page cache for what follows."""

_CHUNK = 1 << 22


class Sources:
    """`uses` has the shards of every piece of work in order; `noted` those that an earlier run hashed.

    A thread fetches and hashes shards in the order of their first use; what it raises, `wait` and `check` raise. `note`
    is called with each hash.
    """

    def __init__(
        self,
        store: Store,
        shards: Iterable[str],
        uses: Sequence[frozenset[str]],
        noted: dict[str, SourceNote],
        note: Callable[[SourceNote], None],
    ) -> None:
        self._store, self._note = store, note
        self.notes = dict(noted)
        self._left = {shard: sum(shard in use for use in uses) for shard in shards}
        self._order = list(dict.fromkeys(shard for use in uses for shard in sorted(use)))
        # What nothing uses is hashed for the record alone, unless its hash is known.
        self._order += [shard for shard, uses in self._left.items() if not uses and not self._known(shard)]
        self._here: set[str] = set()
        self._asked = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sources", daemon=True)

    def __enter__(self) -> "Sources":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def wait(self, shards: frozenset[str]) -> None:
        """Return once the shards lie on disk."""
        with self._changed:
            last = max((self._order.index(shard) for shard in shards), default=-1)
            self._asked = max(self._asked, last + 1)
            self._changed.notify_all()
        self._wait(lambda: shards <= self._here)

    def check(self, shards: frozenset[str]) -> None:
        """Return once shards that were waited for are hashed. Raises InputError where one changed since."""
        self._wait(lambda: shards <= self.notes.keys())
        for shard in shards:
            if self._store.identity(shard) != self.notes[shard].identity:
                hint = "convert again once it stays as it is"
                raise InputError("the checkpoint changed while it was converted", where=shard, hint=hint)

    def release(self, shards: frozenset[str]) -> list[str]:
        """A piece of work that used these is done; the shards that nothing needs any more."""
        gone = []
        for shard in shards:
            self._left[shard] -= 1
            if not self._left[shard]:
                self._store.release(shard)
                gone.append(shard)
        return gone

    def hashes(self) -> list[FileHash]:
        """The hash of every shard."""
        self.wait(frozenset(self._order))
        self._wait(lambda: self.notes.keys() >= set(self._order))
        for shard in self._left:
            if shard not in self.notes:
                known = self._store.sha256(shard)
                assert known is not None
                file = FileHash(shard, self._store.size(shard), known)
                self.notes[shard] = SourceNote(file, self._store.identity(shard))
        return [self.notes[shard].file for shard in sorted(self._left)]

    def _known(self, shard: str) -> bool:
        return shard in self.notes or self._store.sha256(shard) is not None

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            # Woken now and then, so that an interrupt from the keyboard is heard.
            while not until() and self._error is None:
                self._changed.wait(timeout=0.5)
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        try:
            for position, shard in enumerate(self._order):
                with self._changed:
                    while not self._stopped and position >= self._asked + AHEAD:
                        self._changed.wait()
                    if self._stopped:
                        return
                path = self._store.fetch(shard, lambda amount: None)
                with self._changed:
                    self._here.add(shard)
                    self._changed.notify_all()
                if shard not in self.notes:
                    self._hash(shard, path)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _hash(self, shard: str, path: Path) -> None:
        identity, known = self._store.identity(shard), self._store.sha256(shard)
        found = hash_file(shard, path, lambda: not self._stopped)
        if self._stopped:
            return
        if known not in (None, found.sha256):
            what, hint = f"its SHA-256 is {found.sha256}", "download it again"
            raise InputError(what, where=path, expected=str(known), hint=hint)
        note = SourceNote(found, identity)
        self._note(note)
        with self._changed:
            self.notes[shard] = note
            self._changed.notify_all()


def hash_file(name: str, path: Path, keep_on: Callable[[], bool] = lambda: True) -> FileHash:
    """The size and SHA-256 of a file under a name of ours, as far as `keep_on` lets it read."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while keep_on() and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
    return FileHash(name, size, digest.hexdigest())
