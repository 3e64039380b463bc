"""How long work tells what it does."""

from typing import Protocol


class Progress(Protocol):
    """Told what is being done and how far it is. One thread calls it at a time."""

    def start(self, task: str, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...


class Silent:
    """Progress that nobody sees."""

    def start(self, task: str, total_bytes: int) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass
