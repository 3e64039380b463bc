"""Write a pack so that a kill at any instant leaves either no pack or a partial one that the next run continues.

Files go to NAME.partial/ one by one (written, synced, renamed, noted in a journal); the manifest comes last; then the
folder takes its name.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch

from krasis.errors import FitError, KrasisError, UsageError
from krasis.pack import manifest as manifests
from krasis.pack.disk import TMP, disk_errors, sync_folder, write_synced
from krasis.pack.manifest import FileHash, Manifest, PackFile, Segment, Settings
from krasis.pack.reader import PARTIAL
from krasis.pack.record import TensorSpec, record_bytes, sections

JOURNAL = "journal.jsonl"
Arrays = Mapping[tuple[str, str], torch.Tensor]


class _Start(msgspec.Struct, tag="start", forbid_unknown_fields=True):
    key: str


class _Done(msgspec.Struct, tag="done", forbid_unknown_fields=True):
    file: PackFile
    errors: dict[str, list[float]]


@dataclass(frozen=True)
class SegmentPlan:
    """A segment to write: `count` records of `tensors` in `layout`."""

    name: str
    layout: str
    tensors: tuple[TensorSpec, ...]
    count: int

    @property
    def bytes(self) -> int:
        return self.count * record_bytes(self.tensors, self.layout)


class FileWriter:
    """One file of weights in the making. Records may be put in any order, each exactly once."""

    def __init__(self, name: str, file: BinaryIO, plans: list[SegmentPlan]) -> None:
        self._name, self._file = name, file
        self._plans = {(plan.name, plan.layout): plan for plan in plans}
        self._offsets: dict[tuple[str, str], int] = {}
        self._hashes: dict[tuple[str, str], list[str]] = {}
        self.errors: dict[str, list[float]] = {}
        end = 0
        for key, plan in self._plans.items():
            self._offsets[key] = end
            self._hashes[key] = [""] * plan.count
            end += plan.bytes
        self._bytes = end
        file.truncate(end)

    def put(self, name: str, layout: str, index: int, arrays: Arrays) -> None:
        """Write one record: (tensor, part) -> an array of the shape and dtype its section needs."""
        plan = self._plans[name, layout]
        if not 0 <= index < plan.count or self._hashes[name, layout][index]:
            expected = f"0 to {plan.count - 1}, each once"
            raise KrasisError(f"record {index} of {name}@{layout}", where=self._name, expected=expected)
        record = bytearray(record_bytes(plan.tensors, layout))
        for section in sections(plan.tensors, layout):
            array = arrays[section.tensor, section.part].contiguous()
            if array.dtype != section.dtype or tuple(array.shape) != section.shape:
                raise KrasisError(
                    f"{section.tensor} {section.part} is {array.dtype} {tuple(array.shape)}",
                    where=f"{name}@{layout}",
                    expected=f"{section.dtype} {section.shape}",
                )
            record[section.offset : section.offset + section.bytes] = array.flatten().view(torch.uint8).numpy().data
        self._file.seek(self._offsets[name, layout] + index * len(record))
        self._file.write(record)
        self._hashes[name, layout][index] = hashlib.sha256(record).hexdigest()

    def put_error(self, name: str, tensor: str, figure: float) -> None:
        """Note the relative RMS error of the next record's matrix."""
        self.errors.setdefault(f"{name}.{tensor}", []).append(figure)

    def entry(self) -> PackFile:
        """What was written. Raises KrasisError where a record is missing."""
        for (name, layout), hashes in self._hashes.items():
            if not all(hashes):
                raise KrasisError(f"record {hashes.index('')} of {name}@{layout} was never written", where=self._name)
        found = (
            Segment(plan.name, plan.layout, self._offsets[key], plan.tensors, tuple(self._hashes[key]))
            for key, plan in self._plans.items()
        )
        return PackFile(self._name, self._bytes, tuple(found))


class PackWriter:
    """A pack in the making at `path`, under a lock. `key` names the job: a partial pack of another key is dropped.

    Raises UsageError where `path` exists (with `force` only a pack is replaced) or another writer is at work, FitError
    where the disk has less than `need` bytes free.
    """

    def __init__(self, path: Path, key: str, need: int, *, force: bool = False) -> None:
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self._force = force
        self._refuse_existing()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't create the pack: {error.strerror}", where=self.partial) from error
        self._lock = self._take_lock()
        try:
            self._refuse_foreign()
            self.finished = self._resume(key)
            self._start(key)
            self._check_space(need)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @contextlib.contextmanager
    def file(self, name: str, plans: list[SegmentPlan]) -> Iterator[FileWriter]:
        """Write one file: whole and noted in the journal when the block ends, absent where it fails."""
        scratch = self.partial / f"{name}{TMP}"
        with disk_errors(scratch), scratch.open("wb") as handle:
            writer = FileWriter(name, handle, plans)
            yield writer
            handle.flush()
            os.fsync(handle.fileno())
            entry = _Done(writer.entry(), writer.errors)
        scratch.rename(self.partial / name)
        self._note(entry)
        self.finished[name] = entry

    def extra(self, name: str, content: bytes) -> FileHash:
        """Write a small file that travels with the pack."""
        write_synced(self.partial / name, content)
        return FileHash(name, len(content), hashlib.sha256(content).hexdigest())

    def publish(
        self, *, tool: str, settings: Settings, model: dict[str, Any], source: list[FileHash], extras: list[FileHash]
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
            )
        )
        manifest = manifests.decode(raw, self.partial / manifests.FILE_NAME)
        write_synced(self.partial / manifests.FILE_NAME, raw)
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
        self.partial.rename(self.path)
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

    def _take_lock(self) -> int:
        lock = os.open(self.partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            hint = "wait for it to end, or name another destination"
            raise UsageError("another convert is writing this pack", where=self.partial, hint=hint) from None
        return lock

    def _resume(self, key: str) -> dict[str, _Done]:
        """What an earlier run of the same job finished, read back and hashed again."""
        try:
            lines = (self.partial / JOURNAL).read_bytes().splitlines()
            if msgspec.json.decode(lines[0], type=_Start).key != key:
                return {}
        except (OSError, IndexError, ValueError):
            return {}
        finished = {}
        for line in lines[1:]:
            # A kill may cut the last line short; its file is simply written again.
            with contextlib.suppress(ValueError):
                entry = msgspec.json.decode(line, type=_Done)
                if _intact(self.partial / entry.file.name, entry.file):
                    finished[entry.file.name] = entry
        return finished

    def _start(self, key: str) -> None:
        """Drop what is not known to be whole, and begin a journal that says so."""
        for leftover in self.partial.iterdir():
            if leftover.name not in self.finished and leftover.name != JOURNAL:
                leftover.unlink()
        lines = [_Start(key), *self.finished.values()]
        write_synced(self.partial / JOURNAL, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def _note(self, entry: _Done) -> None:
        with disk_errors(self.partial / JOURNAL), (self.partial / JOURNAL).open("ab") as journal:
            journal.write(msgspec.json.encode(entry) + b"\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _check_space(self, need: int) -> None:
        written = sum(entry.file.bytes for entry in self.finished.values())
        free = shutil.disk_usage(self.partial).free
        if need - written > free:
            what = f"the pack needs {need - written} more bytes"
            raise FitError(what, where=self.partial, expected=f"{free} are free", hint="make room or name another disk")


def _intact(path: Path, file: PackFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as handle:
        return all(
            hashlib.sha256(handle.read(segment.record_bytes)).hexdigest() == expected
            for segment in file.segments
            for expected in segment.sha256
        )
