"""Write a pack so that a kill at any instant leaves either no pack or a partial one that the next run continues.

Files go to NAME.partial/ one by one (written, synced, renamed, noted in a journal); the manifest comes last; then the
folder takes its name.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from krasis.errors import FitError, UsageError
from krasis.pack import manifest as manifests
from krasis.pack.disk import TMP, disk_errors, lock_folder, sync_folder, write_synced
from krasis.pack.file_writer import FileWriter, SegmentPlan
from krasis.pack.hashing import digests, records
from krasis.pack.manifest import FileHash, Manifest, Origin, PackFile, Settings
from krasis.pack.progress import Progress, Silent
from krasis.pack.reader import PARTIAL

JOURNAL = "journal.jsonl"


class SourceNote(msgspec.Struct, tag="source", forbid_unknown_fields=True, frozen=True):
    """A file the pack is made from. `identity` is what tells cheaply whether it is still the one that was hashed."""

    file: FileHash
    identity: str


class _Start(msgspec.Struct, tag="start", forbid_unknown_fields=True):
    key: str
    origin: str = ""


class _Done(msgspec.Struct, tag="done", forbid_unknown_fields=True):
    file: PackFile
    errors: dict[str, list[float]]
    weighted_errors: dict[str, list[float]]


def begun(path: Path) -> str:
    """The origin of the unfinished pack at `path`, "" where there is none or it remembers none."""
    try:
        first = (path.with_name(path.name + PARTIAL) / JOURNAL).read_bytes().partition(b"\n")[0]
        return msgspec.json.decode(first, type=_Start).origin
    except (OSError, ValueError):
        return ""


class PackWriter:
    """A pack in the making at `path`, under a lock. `key` names the job: a partial pack of another key is dropped.

    So is one made from other sources: `recheck` gives what it notes of each anew, None where it changed. What an
    earlier run finished is hashed again on `threads`, which `progress` shows. Files may be finished and sources noted
    from any thread. Raises UsageError where `path` exists (with `force` only a pack is replaced) or another writer is
    at work, FitError where the disk has less than `need` bytes free. `origin` is what `begun` gives of it.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        need: int,
        *,
        force: bool = False,
        recheck: Callable[[SourceNote], SourceNote | None] = lambda note: note,
        threads: int = 1,
        progress: Progress | None = None,
        origin: str = "",
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self.finished: dict[str, _Done] = {}
        self.sources: dict[str, SourceNote] = {}
        self._force = force
        self._journal = threading.Lock()
        self._refuse_existing()
        try:
            with disk_errors(self.partial):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't create the pack: {error.strerror}", where=self.partial) from error
        self._lock = lock_folder(self.partial, "another convert is writing this pack")
        try:
            self._refuse_foreign()
            self._resume(key, recheck, threads, progress or Silent())
            self._start(key, origin)
            self.need = need - sum(entry.file.bytes for entry in self.finished.values())
            self._check_space()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def open(self, name: str, plans: list[SegmentPlan], *, mapped: bool = True) -> FileWriter:
        """Begin a file, to be given to `finish`, or closed and forgotten. Raises FitError on a full disk."""
        return FileWriter(self._scratch(name), name, plans, mapped=mapped)

    def finish(self, file: FileWriter) -> None:
        """Give a file whose records were all written its name, and note it in the journal."""
        entry = _Done(*file.finish())
        with disk_errors(self.partial):
            self._scratch(file.name).rename(self.partial / file.name)
        self._note(entry)
        self.finished[file.name] = entry

    @contextlib.contextmanager
    def file(self, name: str, plans: list[SegmentPlan]) -> Iterator[FileWriter]:
        """Write one file: finished when the block ends, absent where it fails."""
        with disk_errors(self._scratch(name)), contextlib.closing(self.open(name, plans)) as file:
            yield file
            self.finish(file)

    def note_source(self, note: SourceNote) -> None:
        """Remember the hash of a source, so that a later run need not read it for that."""
        self._note(note)
        self.sources[note.file.name] = note

    def extra(self, name: str, content: bytes) -> FileHash:
        """Write a small file that travels with the pack."""
        write_synced(self.partial / name, content)
        return FileHash(name, len(content), hashlib.sha256(content).hexdigest())

    def publish(
        self, *, tool: str, settings: Settings, model: dict[str, Any], source: Sequence[Origin], extras: list[FileHash]
    ) -> Manifest:
        """Write the manifest and give the folder its name. Returns the manifest as published."""
        done = [self.finished[name] for name in sorted(self.finished)]
        raw = manifests.encode(
            Manifest(
                format="krasis-pack",
                version=manifests.VERSION,
                root=manifests.BLANK_ROOT,
                tool=tool,
                settings=settings,
                model=model,
                source=tuple(source),
                extras=tuple(extras),
                files=tuple(entry.file for entry in done),
                errors={name: tuple(figures) for entry in done for name, figures in entry.errors.items()},
                weighted_errors={
                    name: tuple(figures) for entry in done for name, figures in entry.weighted_errors.items()
                },
            )
        )
        manifest = manifests.decode(raw, self.partial / manifests.FILE_NAME)
        write_synced(self.partial / manifests.FILE_NAME, raw)
        with disk_errors(self.path):
            sync_folder(self.partial)
            self._swap()
        (self.path / JOURNAL).unlink()
        return manifest

    def _swap(self) -> None:
        # Another name than NAME.old, which may well be a pack that the user keeps.
        old = self.path.with_name(f"{self.path.name}.replaced{PARTIAL}")
        self._refuse_existing()
        if self.path.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.path.rename(old)
        try:
            self.partial.rename(self.path)
        except OSError:
            if old.exists():
                old.rename(self.path)
            raise
        sync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _refuse_existing(self) -> None:
        if not self.path.exists():
            return
        if not self._force:
            raise UsageError("the destination exists", where=self.path, hint="name another, or replace it with --force")
        if not (self.path / manifests.FILE_NAME).is_file():
            raise UsageError("the destination is no pack", where=self.path, hint="--force replaces packs alone")

    def _refuse_foreign(self) -> None:
        """A folder of this name that no writer made is not ours to empty."""
        names = {path.name for path in self.partial.iterdir()}
        if names - {JOURNAL + TMP} and JOURNAL not in names:
            hint = "move it away, or name another destination"
            raise UsageError("the folder is no unfinished pack", where=self.partial, hint=hint)

    def _resume(
        self, key: str, recheck: Callable[[SourceNote], SourceNote | None], threads: int, progress: Progress
    ) -> None:
        """Find what an earlier run of the same job finished, and hash it again."""
        claims = self._claims(key)
        sources = [recheck(note) for note in claims if isinstance(note, SourceNote)]
        if None in sources:
            return
        done = [claim for claim in claims if isinstance(claim, _Done) and self._has_size(claim.file)]
        if done:
            progress.start("checking what is finished", sum(claim.file.bytes for claim in done))
        files = [(claim.file, segment) for claim in done for segment in claim.file.segments]
        found = digests((span for file, segment in files for span in records(self.partial, file, segment)), threads)
        for claim in done:
            expected = [digest for segment in claim.file.segments for digest in segment.sha256]
            if list(islice(found, len(expected))) == expected:
                self.finished[claim.file.name] = claim
            progress.advance(claim.file.bytes)
        self.sources = {note.file.name: note for note in sources if note is not None}

    def _claims(self, key: str) -> "list[SourceNote | _Done]":
        """The journal of an earlier run, none where it was of another job."""
        try:
            lines = (self.partial / JOURNAL).read_bytes().splitlines()
            if msgspec.json.decode(lines[0], type=_Start).key != key:
                return []
        except (OSError, IndexError, ValueError):
            return []
        claims = []
        for line in lines[1:]:
            # A kill may cut the last line short; its file is simply written again.
            with contextlib.suppress(ValueError):
                claims.append(msgspec.json.decode(line, type=SourceNote | _Done))
        return claims

    def _has_size(self, file: PackFile) -> bool:
        path = self.partial / file.name
        return path.is_file() and path.stat().st_size == file.bytes

    def _start(self, key: str, origin: str) -> None:
        """Drop what is not known to be whole, and begin a journal that says so."""
        for leftover in self.partial.iterdir():
            if leftover.name not in self.finished and leftover.name != JOURNAL:
                leftover.unlink()
        lines = [_Start(key, origin), *self.sources.values(), *self.finished.values()]
        write_synced(self.partial / JOURNAL, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def _note(self, entry: SourceNote | _Done) -> None:
        path, line = self.partial / JOURNAL, msgspec.json.encode(entry) + b"\n"
        with self._journal, disk_errors(path), path.open("ab") as journal:
            journal.write(line)
            journal.flush()
            os.fsync(journal.fileno())

    def _scratch(self, name: str) -> Path:
        return self.partial / f"{name}{TMP}"

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.partial).free
        if self.need > free:
            what = f"the pack needs {self.need} more bytes"
            raise FitError(what, where=self.partial, expected=f"{free} are free", hint="make room or name another disk")
