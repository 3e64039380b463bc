"""SHA-256 of parts of files as fast as a disk gives them: a thread a core, each reading ahead of where it hashes."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from krasis.pack.manifest import PackFile, Segment

# What is read at a time stays in a core's cache until it is hashed.
_CHUNK = 1 << 20
# Threads take neighbouring spans, so what one asks for ahead is often what another reads next.
_AHEAD = 32 << 20
_WAITING = 16

_own = threading.local()


class Span(NamedTuple):
    """`bytes` bytes of the file at `path`, from `offset` on."""

    path: Path
    offset: int
    bytes: int


def digests(spans: Iterable[Span], jobs: int) -> Iterator[str | None]:
    """The digest of each span in turn, as hexadecimal digits; None where it can't be read to its end."""
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[Future[str | None]] = deque()
    try:
        for span in spans:
            waiting.append(pool.submit(_digest, span))
            if len(waiting) > _WAITING * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def sha256(span: Span, keep_on: Callable[[], bool] = lambda: True) -> str:
    """The digest of one span, as far as `keep_on` lets it read. Raises OSError where it can't be read to its end."""
    digest = hashlib.sha256()
    with span.path.open("rb", buffering=0) as file:
        for chunk in _chunks(file.fileno(), span.offset, span.offset + span.bytes):
            if not keep_on():
                break
            digest.update(chunk)
    return digest.hexdigest()


def records(folder: Path, file: PackFile, segment: Segment) -> Iterator[Span]:
    """Where the records of a segment lie."""
    size = segment.record_bytes
    return (Span(folder / file.name, segment.offset + i * size, size) for i in range(segment.count))


def _digest(span: Span) -> str | None:
    try:
        return sha256(span)
    except OSError:
        return None


def _chunks(file: int, start: int, end: int) -> Iterator[memoryview]:
    """The bytes of a file from `start` to `end`, read ahead: views of one buffer, filled anew for each.

    Raises OSError where the file can't be read up to `end`.
    """
    buffer = _buffer()
    for asked in range(start, end, _CHUNK):
        os.posix_fadvise(file, asked + _AHEAD, _CHUNK, os.POSIX_FADV_WILLNEED)
        at, until = asked, min(asked + _CHUNK, end)
        while at < until:
            count = os.preadv(file, [buffer[: until - at]], at)
            if not count:
                raise OSError("the file ends early")
            yield buffer[:count]
            at += count


def _buffer() -> memoryview:
    if not hasattr(_own, "buffer"):
        _own.buffer = memoryview(bytearray(_CHUNK))
    found: memoryview = _own.buffer
    return found
