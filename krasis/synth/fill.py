"""Fill the files of a pack: runs of records on many threads, and one more that syncs the files that are full."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, zip_longest

from krasis.convert.planned import PlannedFile
from krasis.convert.workers import Workers
from krasis.pack.file_writer import FileWriter, SegmentPlan
from krasis.pack.writer import PackWriter

TASK = 16 << 20
"""Bytes of a piece of work, about: what handing one out takes is little beside it."""

TOGETHER = 4
"""Files that are filled at a time: the system lets only one thread at once write to a file."""

Put = Callable[[FileWriter, list[SegmentPlan], range], int]
Task = tuple[Callable[[], int], Callable[[int], None]]
"""A piece of work that returns its bytes, and what follows it in the calling thread."""


def fill(writer: PackWriter, files: Sequence[PlannedFile], put: Put, jobs: int, advance: Callable[[int], None]) -> None:
    """Write the files; each is noted in the journal once it is whole.

    `put` writes some records in every layout and returns their bytes, with which `advance` is called in this thread.
    """
    with ExitStack() as opened, Workers[None](1) as closers, Workers[int](jobs) as fillers:

        def tasks(file: PlannedFile) -> Iterator[Task]:
            out, left = writer.open(file.name, file.plans, mapped=False), file.bytes
            opened.callback(out.close)

            def done(size: int) -> None:
                nonlocal left
                advance(size)
                left -= size
                if not left:
                    closers.submit(partial(writer.finish, out), lambda _: None)

            for plans in file.segments:
                size = sum(plan.record_bytes for plan in plans)
                for indices in _runs(plans[0].count, max(TASK // size, 1)):
                    yield partial(put, out, plans, indices), done

        for first in range(0, len(files), TOGETHER):
            together = zip_longest(*map(tasks, files[first : first + TOGETHER]))
            for work, follow in filter(None, chain.from_iterable(together)):
                fillers.submit(work, follow)
        fillers.drain()
        closers.drain()


def _runs(count: int, most: int) -> Iterator[range]:
    return (range(first, min(first + most, count)) for first in range(0, count, most))
