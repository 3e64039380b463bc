"""Choices kept token by token on disk, to be read again and again in the order of the text."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from krasis.heat.routing import Choices
from krasis.pack.disk import disk_errors


class Trace:
    """A file of one array after another, each a window's int16 [layers, tokens, top_k] as numpy writes them.

    `layers` are those with experts, in order. What lies in the file beyond `size` bytes is dropped: a run that
    was cut short says how far it came.
    """

    def __init__(self, path: Path, layers: tuple[int, ...], size: int = 0) -> None:
        self._path, self._layers, self.size = path, layers, size
        with disk_errors(path), path.open("ab") as file:
            file.truncate(size)

    def append(self, choices: Choices) -> None:
        """Add a window. Raises FitError on a full disk."""
        stacked = np.stack([choices[layer] for layer in self._layers]).astype(np.int16)
        with disk_errors(self._path), self._path.open("ab") as file:
            np.save(file, stacked)
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def __iter__(self) -> Iterator[Choices]:
        with self._path.open("rb") as file:
            while file.tell() < self.size:
                stacked = np.load(file, allow_pickle=False).astype(np.int64)
                yield dict(zip(self._layers, stacked, strict=True))
