"""What a sequence remembers on the GPU, allocated once, and how far it is: captured kernels read that there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.errors import KrasisError
from krasis.models.blocks.rope import Angles, Rope
from krasis.models.state import Cached, LayerState, Places, Recurrent
from krasis.native.cuda.attention import attention_few, attention_many, widen
from krasis.native.cuda.gemm import MOST_FEW
from krasis.native.cuda.ops import Cache, store
from krasis.runtime.backend import KvDtype
from krasis.runtime.state import SequenceState, kept_rows


@dataclass(frozen=True)
class _Layer:
    """Caches, of which attention looks back over `window` tokens, or the tensors of a recurrent layer."""

    caches: tuple[Cache, ...] = ()
    window: int = 0
    recurrent: tuple[Tensor, ...] = ()


class DeviceState(SequenceState):
    """Implements the same for the one sequence of an engine, on the device of `place`, int32 [1]: its position."""

    def __init__(self, layers: list[LayerState], capacity: int, chunk: int, kind: KvDtype, place: Tensor) -> None:
        self.capacity, self._place, self._layers = capacity, place, layers
        self._device = place.device
        self._made = [self._layer(layer, capacity, chunk, kind) for layer in layers]
        self._of_values = {cache.values.data_ptr(): cache for layer in self._made for cache in layer.caches}
        self._tables: dict[Rope, Angles] = {}
        self._begin()
        self._kept = [torch.zeros_like(memory) for memory in self._memories()]
        self.reset()

    def _layer(self, layer: LayerState, capacity: int, chunk: int, kind: KvDtype) -> _Layer:
        if isinstance(layer, Recurrent):
            return _Layer(recurrent=tuple(torch.zeros(shape, device=self._device) for shape in layer.shapes))
        rows = kept_rows(layer, capacity, chunk)
        return _Layer(tuple(self._cache(rows, shape, kind) for shape in layer.rows), layer.window)

    def _cache(self, rows: int, shape: tuple[int, int], kind: KvDtype) -> Cache:
        heads, dim = shape
        if kind == "fp8":
            values = torch.zeros(rows, heads, dim, dtype=torch.float8_e4m3fn, device=self._device)
            return Cache(values, torch.zeros(rows, heads, device=self._device))
        return Cache(torch.zeros(rows, heads, dim, dtype=torch.bfloat16, device=self._device))

    def reset(self) -> None:
        """Forget the sequence."""
        self._furthest = 0
        self._placed = -1  # the layer whose rows were put into its caches already
        self.position = 0
        self._lost, self.mixes = False, None
        for layer in self._made:
            for tensor in layer.recurrent:
                tensor.zero_()

    @property
    def position(self) -> int:
        """How long the sequence is; see `SequenceState`."""
        return self._at

    @position.setter
    def position(self, position: int) -> None:
        for layer in self._made:
            if layer.window:
                self._check_kept(layer, max(position - layer.window + 1, 0))
        self._at = position
        self._place.fill_(position)

    def moved(self, tokens: int) -> None:
        """A captured step has moved the device's position on."""
        self._at += tokens
        self._furthest = max(self._furthest, self._at)

    def angles(self, rope: Rope, tokens: int) -> Angles:
        """Those of all positions."""
        if rope not in self._tables:
            cos, sin = rope.angles(0, self.capacity)
            self._tables[rope] = (cos[:, 0].contiguous().to(self._device), sin[:, 0].contiguous().to(self._device))
        return self._tables[rope]

    def advance(self, tokens: int) -> None:
        self.moved(tokens)
        self._place.add_(tokens)

    def places(self, layer: int, tokens: int) -> Places:
        """Raises FitError past the capacity."""
        self.check(tokens)
        self._placed = layer
        return self._made[layer].caches

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
        made = self._extended(layer, k, v)
        keys, values = made.caches
        if q.shape[0] <= MOST_FEW:
            return attention_few(q, keys, values, scale, self._place, made.window, sinks)
        wide = [self._wide(cache, q.shape[0], made.window) for cache in made.caches]
        return attention_many(q, wide[0], wide[1], scale, self._place, made.window, sinks)

    def extend(self, layer: int, *rows: Tensor) -> tuple[Cached, ...]:
        """Without windows: all rows so far. Captured, these may be more than they seem."""
        made, end = self._extended(layer, *rows), self._at + rows[0].shape[0]
        return tuple(
            Cached(cache.values[:end], None if cache.scales is None else cache.scales[:end, :, None])
            for cache in made.caches
        )

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float) -> Tensor:
        if (cache := self._of_values.get(k.values.data_ptr())) is not None:
            return attention_few(q, cache, cache, scale, self._place, v_dim=v.values.shape[-1])
        return attention_many(q, k.values, v.values, scale, self._place)

    def _memory(self, layer: int) -> tuple[Tensor, ...]:
        return self._made[layer].recurrent

    def _check_kept(self, layer: _Layer, first: int) -> None:
        """Raises KrasisError where later positions have taken the place of `first`."""
        kept = self._furthest - layer.caches[0].values.shape[0]
        if first < kept:
            raise KrasisError(f"position {first} of the sequence is gone", expected=f"{kept} or later")

    def _extended(self, layer: int, *rows: Tensor) -> _Layer:
        self.check(rows[0].shape[0])
        made = self._made[layer]
        if layer != self._placed:
            for cache, x in zip(made.caches, rows, strict=True):
                store(x, cache, self._place)
        self._placed = -1
        return made

    def _wide(self, cache: Cache, tokens: int, window: int) -> Tensor:
        if cache.scales is None:
            return cache.values
        out = torch.empty(cache.values.shape, dtype=torch.bfloat16, device=self._device)
        return widen(cache, self._place, tokens, window, out)
