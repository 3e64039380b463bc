"""Storage of what grows by a row a token, allocated once."""

from collections.abc import Callable

import torch
from torch import Tensor

from krasis.errors import KrasisError
from krasis.models.state import Cached
from krasis.runtime.backend import KvDtype

Store = Callable[[Tensor, Tensor | None, int, Tensor], None]
"""(values [capacity, heads, dim], their scales or None, at, x [tokens, heads, dim]); see `store_rows`."""

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_FP8_MAX = 448.0


class Rows:
    """The last `capacity` rows or fewer, [heads, dim] each, in `kind`; fp8 carries one float32 scale a row and head."""

    def __init__(self, capacity: int, shape: tuple[int, int], kind: KvDtype, store: Store) -> None:
        self._capacity, self._store = capacity, store
        self._start = 0  # the position of the first row
        self._values = torch.empty(capacity, *shape, dtype=_DTYPES[kind])
        self._scales = torch.empty(capacity, shape[0], 1) if kind == "fp8" else None

    @property
    def end(self) -> int:
        """Positions before this one have room where it lies. It only grows, and with it all rows move."""
        return self._start + self._capacity

    def extend(self, position: int, x: Tensor, first: int) -> Cached:
        """Store x [tokens, heads, dim] from `position` on; the rows from `first` to its end: views.

        Where room runs out, rows before `first` go. Raises KrasisError where that one is gone already.
        """
        if first < self._start:
            raise KrasisError(f"position {first} of the sequence is gone", expected=f"{self._start} or later")
        end = position + x.shape[0]
        if end > self.end:
            self._drop(first, position)
        self._store(self._values, self._scales, position - self._start, x)
        seen = slice(first - self._start, end - self._start)
        return Cached(self._values[seen], None if self._scales is None else self._scales[seen])

    def _drop(self, first: int, position: int) -> None:
        """Move the rows from `first` to `position` to the front."""
        for stored in (self._values, self._scales):
            if stored is not None:
                # Cloned, since the two places may overlap.
                stored[: position - first] = stored[first - self._start : position - self._start].clone()
        self._start = first


def store_rows(values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
    """Put x where rows `at` and on lie, divided by a scale a row and head where there are scales."""
    rows = slice(at, at + x.shape[0])
    if scales is not None:
        scales[rows] = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _FP8_MAX
        x = x / scales[rows]
    values[rows] = x


def row_bytes(shape: tuple[int, int], kind: KvDtype) -> int:
    """Bytes that `Rows` allocates for each of its capacity."""
    heads, dim = shape
    return heads * (dim * _DTYPES[kind].itemsize + (4 if kind == "fp8" else 0))
