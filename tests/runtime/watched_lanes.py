"""Lanes that tell who waits for whom."""

import contextlib

import torch

from krasis.runtime.cuda.lanes import Lanes


class Watched(Lanes):
    """Lanes that check who waits for whom: a buffer's bytes are read after their copy, and copied over after that."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.events, self.copies = [], False

    @contextlib.contextmanager
    def copying(self, after):
        self.events.append(("copy", after))
        self.copies = True
        yield
        self.copies = False

    def mark(self):
        self.events.append(("filled" if self.copies else "read", len(self.events)))
        return len(self.events) - 1

    def wait(self, event):
        self.events.append(("wait", event))
