"""What commands print: progress and notes on stderr, results on stdout."""

import json
import re
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from krasis.errors import UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_QUIET_S = 5.0


def parse_size(text: str) -> int:
    """Bytes of `16GiB`, `16G` (the same), `500MB` or `1024`. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B|)", text.strip())
    if match is None or (match[3] == "iB" and not match[2]):
        raise UsageError(f"{text!r} is no size", expected="such as 16GiB, 16G or 500MB")
    units = _UNITS if match[3] == "B" or not match[2] else _BINARY
    return int(float(match[1]) * units[match[2]])


def human(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def plain(text: str) -> str:
    """One line of text as a terminal may show it: names from packs and checkpoints can hold what would steer it."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def note(text: str) -> None:
    """One line for a person, apart from the result."""
    print(f"note: {text}", file=sys.stderr)


def emit_json(result: dict[str, Any]) -> None:
    """The one JSON object of --json."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


class Reporter:
    """A progress bar on a terminal, plain lines every few seconds otherwise. Amounts are bytes, or tokens by `unit`."""

    def __init__(self, unit: str = "bytes") -> None:
        self._unit = unit
        self._bar = _bar(unit) if sys.stderr.isatty() else None
        self._task: TaskID | None = None
        self._name, self._total, self._done, self._began, self._spoke = "", 0, 0, 0.0, 0.0

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and self._name:
            self._line()

    def start(self, task: str, total: int) -> None:
        if self._bar:
            if self._task is not None:
                self._bar.update(self._task, visible=False)
            self._task = self._bar.add_task(task, total=total)
            return
        if self._name:
            self._line()
        self._name, self._total, self._done = task, total, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, amount: int) -> None:
        if self._bar and self._task is not None:
            self._bar.advance(self._task, amount)
            return
        self._done += amount
        if time.monotonic() - self._spoke > _QUIET_S and self._done < self._total:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        rate = self._done / max(now - self._began, 1e-9)
        show = human if self._unit == "bytes" else lambda amount: f"{amount:.0f} {self._unit}"
        print(f"{self._name}: {show(self._done)} of {show(self._total)}, {show(rate)}/s", file=sys.stderr, flush=True)
        self._spoke = now


def _bar(unit: str) -> Progress:
    amounts = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (TextColumn("{task.completed:.0f} tokens"),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
