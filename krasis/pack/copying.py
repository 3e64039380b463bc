"""Copy segments of a pack into memory of one's own."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.pack.anonymous import anonymous
from krasis.pack.progress import Progress

CHUNK = 1 << 23


@dataclass(frozen=True)
class Extent:
    """Some bytes of a file."""

    path: Path
    offset: int
    bytes: int

    def chunks(self) -> Iterator["Extent"]:
        for start in range(0, self.bytes, CHUNK):
            yield Extent(self.path, self.offset + start, min(CHUNK, self.bytes - start))


def copied(extents: Iterable[Extent], jobs: int, progress: Progress) -> list[Tensor]:
    """The bytes of each extent, uint8, one after the other in anonymous memory in huge pages, read by `jobs` threads.

    Raises InputError where a file is shorter, OSError where it can't be read.
    """
    extents = list(extents)
    total = sum(extent.bytes for extent in extents)
    parts = list(torch.split(anonymous(total), [extent.bytes for extent in extents]))
    chunks = [
        (chunk, target)
        for extent, part in zip(extents, parts, strict=True)
        for chunk, target in zip(extent.chunks(), torch.split(part, CHUNK), strict=True)
    ]
    progress.start("copying weights", total)
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in {e.path for e in extents}}
        with ThreadPoolExecutor(jobs) as pool:
            for done in pool.map(lambda pair: _read(files[pair[0].path].fileno(), *pair), chunks):
                progress.advance(done)
    return parts


def _read(descriptor: int, chunk: Extent, target: Tensor) -> int:
    view, done = target.numpy().data, 0
    while done < chunk.bytes:
        count = os.preadv(descriptor, [view[done:]], chunk.offset + done)
        if not count:
            expected = f"{chunk.offset + chunk.bytes} bytes or more"
            raise InputError("a file of the pack is truncated", where=chunk.path, expected=expected)
        done += count
    return done
