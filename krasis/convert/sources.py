"""The shards of a checkpoint while it is converted: each fetched, hashed and noted once, while others are used."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from krasis.convert.runs import HELD, Run, runs
from krasis.convert.store import Store
from krasis.errors import InputError
from krasis.pack.hashing import Span, sha256
from krasis.pack.manifest import FileHash, Origin
from krasis.pack.writer import SourceNote

AHEAD = 1
"""Shards fetched and hashed beyond those that were asked for. Hashing warms the page cache for what follows."""

HASHERS = 4
"""Shards hashed side by side: one stream of SHA-256 is slower than a good disk."""


class Sources:
    """`uses` has the shards of every piece of work in order; `noted` those that an earlier run hashed.

    A thread fetches shards in the order of their use and has them hashed; what goes wrong, `wait` and `check` raise. A
    shard is released once the next piece of work does without it, and fetched again for a later one. `note` is called
    with each hash, from any thread.
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
        self._shards, self._uses = sorted(shards), uses
        self._unused = [shard for shard in self._shards if not any(shard in use for use in uses)]
        # What nothing uses is hashed for the record alone, unless its hash is known.
        unknown = [Run(shard, len(uses), 1) for shard in self._unused if not self._known(shard)]
        self._order = runs(uses) + unknown
        # Pieces of work yet to be done with each shard that is here or on its way.
        self._left: Counter[str] = Counter()
        self._here = self._asked = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._guarded, args=(self._run,), name="sources", daemon=True)
        self._hashers = ThreadPoolExecutor(HASHERS)

    def __enter__(self) -> "Sources":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._store.close()
        self._thread.join()
        self._hashers.shutdown(cancel_futures=True)

    def crowded(self, work: int) -> bool:
        """Whether earlier work must end first, so that its shards make room for those of this piece."""
        with self._changed:
            more = self._uses[work] - self._left.keys()
            return self._store.discard and bool(more) and len(more) + len(self._left) > HELD

    def wait(self, work: int) -> None:
        """Return once the shards of a piece of work lie on disk."""
        with self._changed:
            self._asked = sum(run.first <= work for run in self._order)
            self._changed.notify_all()
        self._wait(lambda: self._here >= self._asked)

    def check(self, shards: frozenset[str]) -> None:
        """Return once shards that were waited for are hashed. Raises InputError where one changed since."""
        self._wait(lambda: shards <= self.notes.keys())
        for shard in shards:
            if self._store.identity(shard) != self.notes[shard].identity:
                hint = "convert again once it stays as it is"
                raise InputError("the checkpoint changed while it was converted", where=shard, hint=hint)

    def release(self, shards: frozenset[str]) -> list[str]:
        """A piece of work that used these is done; the shards that the next one does without."""
        with self._changed:
            return [shard for shard in shards if self._let_go(shard)]

    def hashes(self) -> list[Origin]:
        """The hash of every shard."""
        self.wait(len(self._uses))
        self._wait(lambda: self.notes.keys() >= {run.shard for run in self._order})
        for shard in self._shards:
            if shard not in self.notes:
                known = self._store.sha256(shard)
                assert known is not None
                file = FileHash(shard, self._store.size(shard), known)
                self.notes[shard] = SourceNote(file, self._store.identity(shard))
        files = [self.notes[shard].file for shard in self._shards]
        return [Origin(self._store.full_name(file.name), file.bytes, file.sha256) for file in files]

    def _known(self, shard: str) -> bool:
        return shard in self.notes or self._store.sha256(shard) is not None

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            # Woken now and then, so that an interrupt from the keyboard is heard.
            while not until() and self._error is None:
                self._changed.wait(timeout=0.5)
            if self._error is not None:
                raise self._error

    def _let_go(self, shard: str) -> bool:
        """Whether that was the last piece of work with the shard for now. The lock must be held."""
        self._left[shard] -= 1
        if self._left[shard]:
            return False
        del self._left[shard]
        self._store.release(shard)
        self._changed.notify_all()
        return True

    def _guarded(self, task: Callable[..., None], *arguments: object) -> None:
        try:
            task(*arguments)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _run(self) -> None:
        # An earlier run may have been killed before it could.
        for shard in self._unused:
            self._store.release(shard)
        for position, run in enumerate(self._order):
            with self._changed:
                while not self._stopped and not self._may_begin(position, run.shard):
                    self._changed.wait()
                if self._stopped:
                    return
                self._left[run.shard] += run.count
            path = self._store.fetch(run.shard, lambda amount: None)
            with self._changed:
                self._here += 1
                self._changed.notify_all()
            self._hashers.submit(self._guarded, self._finish, run, path)

    def _may_begin(self, position: int, shard: str) -> bool:
        if position < self._asked:
            return True
        room = not self._store.discard or shard in self._left or len(self._left) < HELD
        return position < self._asked + AHEAD and room

    def _finish(self, run: Run, path: Path) -> None:
        if run.shard not in self.notes:
            self._hash(run.shard, path)
        if run.first == len(self._uses):
            with self._changed:
                self._let_go(run.shard)

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
    size = path.stat().st_size
    return FileHash(name, size, sha256(Span(path, 0, size), keep_on))
