"""A measurement under way: what each text gave so far, in a folder beside the destination, from which it can go on.

`work` has the job and the counts; `trace-N` the choices for text N's held-out windows; `sums-N` what is summed besides
over the first N windows, of which `work` names the one that it belongs to.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
import zstandard

from krasis.errors import UsageError
from krasis.heat.routing import Choices, Routing
from krasis.heat.trace import Trace
from krasis.pack.disk import TMP, disk_errors, lock_folder, sync_folder, write_synced
from krasis.pack.manifest import Origin

SUFFIX = ".partial"
WORK, TRACE, SUMS = "work", "trace-", "sums-"
SAVED_EVERY_S = 30.0
SAVING_SHARE = 20
"""Large sums are saved so rarely that it takes one part in so many of the time."""


class Job(msgspec.Struct, frozen=True):
    """What decides every number of a measurement: who measures what, on which texts, how cut and how run.

    `sequences` is how many run together where an importance matrix is summed, whose sums round in another order then.
    """

    tool: str
    pack_root: str
    corpus: tuple[Origin, ...]
    window: int
    decode_tokens: int
    limit: int | None
    device: str
    layout: str | None
    traces: bool
    imatrix: bool = False
    sequences: int | None = None


@dataclass(frozen=True)
class TextHeat:
    """What the first `windows` windows of a text gave: counted by phase, and held out.

    `trace` has the choices of held-out windows, where it was asked for; `traced` bytes of it are theirs.
    """

    windows: int
    prefill: Routing
    decode: Routing
    held_out: Routing
    trace: Trace | None = None
    traced: int = 0

    @property
    def profile(self) -> Routing:
        """What counts, both phases together."""
        return self.prefill + self.decode

    def counted(self, prefill: Routing, decode: Routing) -> "TextHeat":
        """With a window more."""
        return replace(self, windows=self.windows + 1, prefill=self.prefill + prefill, decode=self.decode + decode)

    def held(self, routing: Routing, choices: Choices) -> "TextHeat":
        """With a window more that is held out."""
        found = replace(self, windows=self.windows + 1, held_out=self.held_out + routing)
        if self.trace is None:
            return found
        self.trace.append(choices)
        return replace(found, traced=self.trace.size)


class _Sums(msgspec.Struct):
    tokens: int
    counts: bytes
    weights: bytes


class _Text(msgspec.Struct):
    windows: int
    prefill: _Sums
    decode: _Sums
    held_out: _Sums
    traced: int


class _File(msgspec.Struct):
    job: Job
    texts: list[_Text]
    sums: str


class Partial:
    """`texts[i]` is what text i of the job gave so far: that of an earlier run of the same job, or nothing.

    `sums` is memory that holds what is summed besides, zeros at first, and is filled with what an earlier run had.
    `dropped` says why an earlier run could not be gone on with. As a context it saves what there is when it is
    interrupted, where there are no sums: those are saved between windows alone. Until it ends nobody else can open it.
    Raises UsageError where somebody has, or nothing can be written beside `destination`, FitError on a full disk.
    """

    def __init__(self, destination: Path, job: Job, experts: dict[int, int], sums: Sequence[memoryview] = ()) -> None:
        self.path = destination.with_name(destination.name + SUFFIX)
        self.job, self.dropped = job, ""
        self._experts, self._sums = dict(sorted(experts.items())), sums
        self._saved, self._took = time.monotonic(), 0.0
        try:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path, "another profile-heat is measuring this profile")
            try:
                self.texts = self._begin()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise UsageError(f"can't write the heat profile: {error.strerror}", where=self.path) from error

    def __enter__(self) -> "Partial":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is KeyboardInterrupt and not self._sums:
                self._save()
        finally:
            os.close(self._lock)

    @property
    def age(self) -> float:
        """Seconds since it was last saved."""
        return time.monotonic() - self._saved

    def put(self, text: int, heat: TextHeat) -> None:
        """Replace what a text gave."""
        self.texts[text] = heat

    def save_if_due(self) -> None:
        """Save every now and then. `texts` and sums must be of the same windows."""
        if self.age > max(SAVED_EVERY_S, SAVING_SHARE * self._took):
            self._save()

    def remove(self) -> None:
        """Delete all files, the traces too: the measurement is done with."""
        self._empty()
        # What others put there stays.
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _begin(self) -> list[TextHeat]:
        saved = self._read()
        if saved is None:
            self._empty()
        texts = [self._text(i, saved.texts[i] if saved else None) for i in range(len(self.job.corpus))]
        if saved is None:
            # Whether this can be written shows before anything is run.
            self._write(texts, "")
        elif saved.sums:
            with (self.path / saved.sums).open("rb") as file:
                for sums in self._sums:
                    file.readinto(sums)
        return texts

    def _read(self) -> _File | None:
        """What an earlier run saved, None where it was of another job."""
        try:
            saved = msgspec.msgpack.decode(zstandard.decompress((self.path / WORK).read_bytes()), type=_File)
        except FileNotFoundError:
            return None
        except (zstandard.ZstdError, ValueError, OSError):
            self.dropped = "it can't be read"
            return None
        if differing := [key for key in Job.__struct_fields__ if getattr(saved.job, key) != getattr(self.job, key)]:
            self.dropped = f"it differs in {differing[0].replace('_', ' ')}"
        elif not self._is_whole(saved):
            self.dropped = "it lacks something"
        return None if self.dropped else saved

    def _is_whole(self, saved: _File) -> bool:
        texts, size = saved.texts, 8 * sum(self._experts.values())
        parts = [part for text in texts for part in (text.prefill, text.decode, text.held_out)]
        files = {self._trace_path(i): text.traced for i, text in enumerate(texts) if text.traced}
        if self._sums and any(text.windows for text in texts):
            files[self.path / saved.sums] = sum(sums.nbytes for sums in self._sums)
        return (
            len(texts) == len(self.job.corpus)
            and all(len(part.counts) == len(part.weights) == size for part in parts)
            and all(path.is_file() and path.stat().st_size >= bytes_ for path, bytes_ in files.items())
        )

    def _text(self, number: int, saved: _Text | None) -> TextHeat:
        traced = saved.traced if saved else 0
        trace = Trace(self._trace_path(number), tuple(self._experts), traced) if self.job.traces else None
        if saved is None:
            nothing = Routing.nothing(self._experts)
            return TextHeat(0, nothing, nothing, nothing, trace)
        prefill, decode, held_out = map(self._routing, (saved.prefill, saved.decode, saved.held_out))
        return TextHeat(saved.windows, prefill, decode, held_out, trace, traced)

    def _save(self) -> None:
        begin, sums = time.monotonic(), ""
        if self._sums:
            # Under a name of their own, so that at any instant there are the sums that the counts belong to.
            sums = f"{SUMS}{sum(text.windows for text in self.texts)}"
            write_synced(self.path / sums, *self._sums)
            sync_folder(self.path)
        self._write(self.texts, sums)
        for path in self.path.glob(f"{SUMS}*"):
            if path.name != sums:
                path.unlink()
        self._saved = time.monotonic()
        self._took = self._saved - begin

    def _write(self, texts: Sequence[TextHeat], sums: str) -> None:
        saved = [
            _Text(text.windows, _sums(text.prefill), _sums(text.decode), _sums(text.held_out), text.traced)
            for text in texts
        ]
        write_synced(self.path / WORK, zstandard.compress(msgspec.msgpack.encode(_File(self.job, saved, sums))))

    def _trace_path(self, number: int) -> Path:
        return self.path / f"{TRACE}{number}"

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.name in (WORK, WORK + TMP) or path.name.startswith((TRACE, SUMS)):
                path.unlink()

    def _routing(self, sums: _Sums) -> Routing:
        borders = np.cumsum(list(self._experts.values()))[:-1]
        counts = np.split(np.frombuffer(sums.counts, np.int64), borders)
        weights = np.split(np.frombuffer(sums.weights, np.float64), borders)
        return Routing(
            sums.tokens,
            dict(zip(self._experts, counts, strict=True)),
            dict(zip(self._experts, weights, strict=True)),
        )


def _sums(routing: Routing) -> _Sums:
    counts, weights = (
        b"".join(found[layer].tobytes() for layer in sorted(found)) for found in (routing.counts, routing.weights)
    )
    return _Sums(routing.tokens, counts, weights)
