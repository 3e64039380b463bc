"""One file of weights in the making: its records are filled in place or written whole, by any number of threads."""

import hashlib
import math
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from krasis.errors import KrasisError
from krasis.pack.disk import disk_errors
from krasis.pack.manifest import PackFile, Segment
from krasis.pack.populate import populate
from krasis.pack.record import Section, TensorSpec, record_bytes, sections

Arrays = Mapping[tuple[str, str], Tensor]
"""(tensor, part) -> the array of its section."""


@dataclass(frozen=True)
class SegmentPlan:
    """A segment to write: `count` records of `tensors` in `layout`."""

    name: str
    layout: str
    tensors: tuple[TensorSpec, ...]
    count: int

    @property
    def record_bytes(self) -> int:
        return record_bytes(self.tensors, self.layout)

    @property
    def bytes(self) -> int:
        return self.count * self.record_bytes

    def arrays(self, record: Tensor) -> dict[tuple[str, str], Tensor]:
        """The sections of a record whose bytes, uint8, are given: views of them."""
        return {(s.tensor, s.part): _view(record, s) for s in sections(self.tensors, self.layout)}


class FileWriter:
    """Records may be filled in any order and by several threads, each exactly once.

    Those that are filled in place need a file that is `mapped`. Its whole size is reserved first: a disk that fills up
    later can't take a page of the mapping away. Raises FitError where there is no room.
    """

    def __init__(self, path: Path, name: str, plans: list[SegmentPlan], *, mapped: bool = True) -> None:
        self.name = name
        self._path, self._plans = path, {(plan.name, plan.layout): plan for plan in plans}
        self._offsets: dict[tuple[str, str], int] = {}
        self._hashes: dict[tuple[str, str], list[str]] = {}
        self._errors = {f"{p.name}.{t.name}": [0.0] * p.count for p in plans for t in p.tensors if t.quantized}
        self._weighted = {name: [math.nan] * len(figures) for name, figures in self._errors.items()}
        self._lock = threading.Lock()
        end = 0
        for key, plan in self._plans.items():
            self._offsets[key] = end
            self._hashes[key] = [""] * plan.count
            end += plan.bytes
        self.bytes = end
        with disk_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._data = torch.empty(0, dtype=torch.uint8)
        if not mapped:
            return
        try:
            with disk_errors(path):
                os.posix_fallocate(self._handle, 0, end)
            self._data = torch.frombuffer(mmap.mmap(self._handle, end), dtype=torch.uint8)
        except BaseException:
            os.close(self._handle)
            raise

    def arrays(self, name: str, layout: str, index: int) -> dict[tuple[str, str], Tensor]:
        """The sections of a record, zeros so far, to be filled in place before `seal`."""
        return self._plans[name, layout].arrays(self.record(name, layout, index))

    def record(self, name: str, layout: str, index: int) -> Tensor:
        """The bytes of a record, uint8, zeros so far, to be filled in place before `seal`."""
        self._check_open(name, layout, index)
        data = self._slice(name, layout, index)
        populate(data)
        return data

    def seal(self, name: str, layout: str, index: int) -> None:
        """Hash a record, which must not change any more."""
        self._hash(name, layout, index, self._slice(name, layout, index))

    def write(self, name: str, layout: str, index: int, record: Tensor) -> None:
        """Write the bytes of a record, uint8, and hash them: no page of the file is zeroed and mapped for it.

        Raises FitError on a full disk.
        """
        self._check_open(name, layout, index)
        left, at = record.numpy().data, self._start(name, layout, index)
        with disk_errors(self._path):
            while left:
                count = os.pwrite(self._handle, left, at)
                left, at = left[count:], at + count
        self._hash(name, layout, index, record)

    def put(self, name: str, layout: str, index: int, arrays: Arrays) -> None:
        """Write a record whole: (tensor, part) -> an array of the dtype and shape its section has."""
        for key, place in self.arrays(name, layout, index).items():
            array = arrays[key]
            if array.dtype != place.dtype or array.shape != place.shape:
                what = f"{' '.join(key)} is {array.dtype} {tuple(array.shape)}"
                raise KrasisError(what, where=f"{name}@{layout}", expected=f"{place.dtype} {tuple(place.shape)}")
            place.copy_(array)
        self.seal(name, layout, index)

    def put_error(self, name: str, tensor: str, index: int, figure: float, weighted: float | None = None) -> None:
        """Note the relative RMS error of a record's matrix, and the same weighted by importance where that is known."""
        self._errors[f"{name}.{tensor}"][index] = figure
        if weighted is not None:
            self._weighted[f"{name}.{tensor}"][index] = weighted

    def finish(self) -> tuple[PackFile, dict[str, list[float]], dict[str, list[float]]]:
        """Sync and close the file: what was written, its errors, and weighted ones of matrices that all have them.

        Raises KrasisError where a record is missing.
        """
        for (name, layout), hashes in self._hashes.items():
            if not all(hashes):
                raise KrasisError(f"record {hashes.index('')} of {name}@{layout} was never written", where=self.name)
        with disk_errors(self._path):
            os.fsync(self._handle)
        self.close()
        found = (
            Segment(plan.name, plan.layout, self._offsets[key], plan.tensors, tuple(self._hashes[key]))
            for key, plan in self._plans.items()
        )
        weighted = {name: figures for name, figures in self._weighted.items() if not any(map(math.isnan, figures))}
        return PackFile(self.name, self.bytes, tuple(found)), self._errors, weighted

    def close(self) -> None:
        """Let go of the file. The mapping goes when the last view of it does."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            del self._data

    def _check_open(self, name: str, layout: str, index: int) -> None:
        count = self._plans[name, layout].count
        if not 0 <= index < count or self._hashes[name, layout][index]:
            expected = f"0 to {count - 1}, each once"
            raise KrasisError(f"record {index} of {name}@{layout}", where=self.name, expected=expected)

    def _hash(self, name: str, layout: str, index: int, record: Tensor) -> None:
        digest = hashlib.sha256(record.numpy().data).hexdigest()
        with self._lock:
            self._hashes[name, layout][index] = digest

    def _start(self, name: str, layout: str, index: int) -> int:
        return self._offsets[name, layout] + index * self._plans[name, layout].record_bytes

    def _slice(self, name: str, layout: str, index: int) -> Tensor:
        start = self._start(name, layout, index)
        return self._data[start : start + self._plans[name, layout].record_bytes]


def _view(data: Tensor, section: Section) -> Tensor:
    return data[section.offset : section.offset + section.bytes].view(section.dtype).view(section.shape)
