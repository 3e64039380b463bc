"""Fill the files of a pack: records on many threads, and one more that syncs the files that are full."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from krasis.convert.calibration import Calibration
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.planned import PlannedFile
from krasis.convert.records import Record
from krasis.convert.sources import Sources
from krasis.convert.workers import Workers
from krasis.pack.file_writer import FileWriter
from krasis.pack.writer import PackWriter


class Filler:
    """Use it as a context; `advance` is called with bytes as records are done, in the calling thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        writer: PackWriter,
        sources: Sources,
        advance: Callable[[int], None],
        jobs: int,
        calibration: Calibration | None = None,
    ) -> None:
        self._calibration = calibration
        self._checkpoint, self._writer, self._sources, self._advance = checkpoint, writer, sources, advance
        self._stack = ExitStack()
        self._encoders, self._closers = Workers[Record | None](jobs), Workers[None](1)

    def __enter__(self) -> "Filler":
        # Files are let go of last, when no thread writes to them.
        self._opened = self._stack.enter_context(ExitStack())
        self._stack.enter_context(self._closers)
        self._stack.enter_context(self._encoders)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, files: Sequence[PlannedFile]) -> None:
        """Write the files, in the order of the sources' work; each is noted in the journal once it is whole."""
        for work, file in enumerate(files):
            if self._sources.crowded(work):
                self._drain()
            self._sources.wait(work)
            self._fill(file)
        self._drain()

    def _drain(self) -> None:
        self._encoders.drain()
        self._closers.drain()

    def _fill(self, file: PlannedFile) -> None:
        out = self._writer.open(file.name, file.plans)
        self._opened.callback(out.close)
        records = [
            Record(self._checkpoint, out, plans, index, weights, self._calibration)
            for group, plans in zip(file.groups, file.segments, strict=True)
            for index, weights in enumerate(group.records)
        ]
        left = len(records)

        def done(sealed: Record | None) -> None:
            nonlocal left
            if sealed is None:
                return
            self._advance(sealed.bytes)
            left -= 1
            if not left:
                self._closers.submit(partial(self._close, file, out), lambda _: None)

        for record in records:
            for pieces in record.tasks:
                self._encoders.submit(partial(record.run, pieces), done)

    def _close(self, file: PlannedFile, out: FileWriter) -> None:
        self._sources.check(file.shards)
        self._writer.finish(out)
        for shard in self._sources.release(file.shards):
            self._checkpoint.close(shard)
