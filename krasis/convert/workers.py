"""Threads that work off tasks, a few of them waiting at any time, so that memory stays bounded."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

BACKLOG = 2
"""Tasks a thread that may be waiting or running."""


class Workers(Generic[T]):
    """`done` gets every result in the thread that submits. What a task raises is raised there, and ends the rest."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._most = BACKLOG * threads
        self._pending: dict[Future[T], Callable[[T], None]] = {}

    def __enter__(self) -> "Workers[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Callable[[], T], done: Callable[[T], None]) -> None:
        """Queue a task, waiting for room first."""
        while len(self._pending) >= self._most:
            self._collect()
        self._pending[self._pool.submit(task)] = done

    def drain(self) -> None:
        """Return once every task is done."""
        while self._pending:
            self._collect()

    def _collect(self) -> None:
        for future in wait(self._pending, return_when=FIRST_COMPLETED).done:
            self._pending.pop(future)(future.result())
