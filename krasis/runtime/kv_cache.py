"""Keys and values of one sequence, allocated once for its whole context."""

import torch
from torch import Tensor

from krasis.errors import FitError
from krasis.runtime.backend import Attention, KvDtype

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_FP8_MAX = 448.0


class _Store:
    """[capacity, heads, dim] in `kind`; fp8 carries one float32 scale a token and head."""

    def __init__(self, capacity: int, shape: tuple[int, int], kind: KvDtype) -> None:
        self._values = torch.empty(capacity, *shape, dtype=_DTYPES[kind])
        self._scales = torch.empty(capacity, shape[0], 1) if kind == "fp8" else None

    def put(self, start: int, x: Tensor) -> None:
        if self._scales is not None:
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _FP8_MAX
            self._scales[start : start + len(x)] = scale
            x = x / scale
        self._values[start : start + len(x)] = x

    def get(self, end: int) -> Tensor:
        if self._scales is None:
            return self._values[:end]
        return self._values[:end].float() * self._scales[:end]


class KvCache:
    """The state of a sequence of at most `capacity` tokens. Rewinding `position` forgets what lies after it."""

    def __init__(self, shapes: list[tuple[int, int]], capacity: int, kind: KvDtype, attention: Attention) -> None:
        self.position = 0
        self.capacity = capacity
        self._attention = attention
        self._keys = [_Store(capacity, shape, kind) for shape in shapes]
        self._values = [_Store(capacity, shape, kind) for shape in shapes]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `krasis.models.family.State`. Raises FitError past the capacity."""
        end = self.position + len(k)
        if end > self.capacity:
            raise FitError(f"the sequence needs {end} positions", expected=f"at most {self.capacity} were planned")
        self._keys[layer].put(self.position, k)
        self._values[layer].put(self.position, v)
        return self._attention(q, self._keys[layer].get(end), self._values[layer].get(end), scale)


def kv_bytes(shapes: list[tuple[int, int]], capacity: int, kind: KvDtype) -> int:
    """Bytes a `KvCache` allocates."""
    scale = 4 if kind == "fp8" else 0
    return sum(2 * capacity * heads * (dim * _DTYPES[kind].itemsize + scale) for heads, dim in shapes)
