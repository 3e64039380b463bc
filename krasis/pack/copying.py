"""Copy segments of a pack into memory of one's own."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.pack.anonymous import anonymous
from krasis.pack.hashing import Span
from krasis.pack.progress import Progress

CHUNK = 1 << 23


def copied(spans: Iterable[Span], jobs: int, progress: Progress) -> list[Tensor]:
    """The bytes of each span, uint8, one after the other in anonymous memory in huge pages, read by `jobs` threads.

    Raises InputError where a file is shorter, OSError where it can't be read.
    """
    spans = list(spans)
    total = sum(span.bytes for span in spans)
    parts = list(torch.split(anonymous(total), [span.bytes for span in spans]))
    chunks = [
        (chunk, target)
        for span, part in zip(spans, parts, strict=True)
        for chunk, target in zip(_chunks(span), torch.split(part, CHUNK), strict=True)
    ]
    progress.start("copying weights", total)
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in {span.path for span in spans}}
        with ThreadPoolExecutor(jobs) as pool:
            for done in pool.map(lambda pair: _read(files[pair[0].path].fileno(), *pair), chunks):
                progress.advance(done)
    return parts


def _chunks(span: Span) -> Iterator[Span]:
    for start in range(0, span.bytes, CHUNK):
        yield Span(span.path, span.offset + start, min(CHUNK, span.bytes - start))


def _read(descriptor: int, chunk: Span, target: Tensor) -> int:
    view, done = target.numpy().data, 0
    while done < chunk.bytes:
        count = os.preadv(descriptor, [view[done:]], chunk.offset + done)
        if not count:
            expected = f"{chunk.offset + chunk.bytes} bytes or more"
            raise InputError("a file of the pack is truncated", where=chunk.path, expected=expected)
        done += count
    return done
