"""A measurement under way: what each text gave so far, in a file beside the destination from which it can go on."""

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
from krasis.pack.disk import disk_errors, write_synced
from krasis.pack.manifest import Origin

SUFFIX = ".partial"
SAVED_EVERY_S = 30.0


class Job(msgspec.Struct, frozen=True):
    """What decides every number of a measurement: who measures what, on which texts, how cut and how run."""

    tool: str
    pack_root: str
    corpus: tuple[Origin, ...]
    window: int
    decode_tokens: int
    limit: int | None
    device: str
    layout: str | None
    traces: bool


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


class Partial:
    """`texts[i]` is what text i of the job gave so far: that of an earlier run of the same job, or nothing.

    `dropped` says why an earlier run could not be gone on with. Without `resumable` there is no file to go on from.
    As a context it saves what there is when it is interrupted. Raises UsageError where nothing can be written beside
    `destination`, FitError on a full disk.
    """

    def __init__(self, destination: Path, job: Job, experts: dict[int, int], *, resumable: bool = True) -> None:
        self.path = destination.with_name(destination.name + SUFFIX)
        self.job, self.resumable, self.dropped = job, resumable, ""
        self._experts = dict(sorted(experts.items()))
        saved = self._read() if resumable else []
        try:
            with disk_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if not saved:
                self._remove_traces()
            self.texts = [self._text(i, saved[i] if saved else None) for i in range(len(job.corpus))]
            self._save()
        except OSError as error:
            raise UsageError(f"can't write the heat profile: {error.strerror}", where=destination) from error

    def __enter__(self) -> "Partial":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            self._save()

    def put(self, text: int, heat: TextHeat) -> None:
        """Replace what a text gave; every now and then all is saved."""
        self.texts[text] = heat
        if time.monotonic() - self._saved > SAVED_EVERY_S:
            self._save()

    def remove(self) -> None:
        """Delete all files, the traces too: the measurement is done with."""
        self._remove_traces()
        self.path.unlink(missing_ok=True)

    def _read(self) -> list[_Text]:
        """What an earlier run saved, nothing where it was of another job."""
        try:
            saved = msgspec.msgpack.decode(zstandard.decompress(self.path.read_bytes()), type=_File)
        except FileNotFoundError:
            return []
        except (zstandard.ZstdError, ValueError, OSError):
            self.dropped = "it can't be read"
            return []
        if differing := [key for key in Job.__struct_fields__ if getattr(saved.job, key) != getattr(self.job, key)]:
            self.dropped = f"it is of another {differing[0].replace('_', ' ')}"
        elif not self._is_whole(saved.texts):
            self.dropped = "it lacks something"
        return [] if self.dropped else saved.texts

    def _is_whole(self, texts: Sequence[_Text]) -> bool:
        size = 8 * sum(self._experts.values())
        sums = [part for text in texts for part in (text.prefill, text.decode, text.held_out)]
        traces = [self._trace_path(i) for i in range(len(texts))]
        return (
            len(texts) == len(self.job.corpus)
            and all(len(part.counts) == len(part.weights) == size for part in sums)
            and all(
                not text.traced or (path.is_file() and path.stat().st_size >= text.traced)
                for text, path in zip(texts, traces, strict=True)
            )
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
        self._saved = time.monotonic()
        if not self.resumable:
            return
        texts = [
            _Text(text.windows, _sums(text.prefill), _sums(text.decode), _sums(text.held_out), text.traced)
            for text in self.texts
        ]
        write_synced(self.path, zstandard.compress(msgspec.msgpack.encode(_File(self.job, texts))))

    def _trace_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.trace-{number}")

    def _remove_traces(self) -> None:
        for path in self.path.parent.iterdir():
            if path.name.startswith(f"{self.path.name}.trace-"):
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
