"""Copies and kernels side by side: two streams, and who waits for whom."""

import contextlib
from collections.abc import Iterator

import torch

Event = torch.cuda.Event | None


class Lanes:
    """The current stream, which runs kernels, and one for copies. On the emulated device all happens in turn."""

    def __init__(self, device: torch.device) -> None:
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def copying(self, after: Event) -> Iterator[None]:
        """What is begun inside goes to the stream of copies, once `after` has happened."""
        if self._copies is None:
            yield
            return
        with torch.cuda.stream(self._copies):
            if after is not None:
                self._copies.wait_event(after)
            yield

    def mark(self) -> Event:
        """An event that happens once what the current stream was given so far is done."""
        return torch.cuda.current_stream().record_event() if self._copies is not None else None

    def finish(self, event: Event) -> None:
        """The host goes on once `event` has happened."""
        if event is not None:
            event.synchronize()

    def wait(self, event: Event) -> None:
        """The current stream goes on once `event` has happened."""
        if event is not None:
            torch.cuda.current_stream().wait_event(event)
