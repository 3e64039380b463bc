"""What one sequence remembers, allocated once for its whole context."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from krasis.errors import FitError
from krasis.models.blocks.rope import Angles, Rope
from krasis.models.state import Cache, Cached, LayerState, Places, Recurrent
from krasis.runtime.backend import Attention, KvDtype
from krasis.runtime.rows import Rows, Store, row_bytes, store_rows


class SequenceState:
    """Implements `State` and `OneSequence` of `krasis.models.state` for `capacity` tokens, `chunk` of them at once.

    Rewinding `position` forgets what lies after it, where no layer is recurrent. What a window no longer needed may be
    gone then, and a KrasisError says so.
    """

    def __init__(
        self,
        layers: list[LayerState],
        capacity: int,
        chunk: int,
        kind: KvDtype,
        attention: Attention,
        store: Store = store_rows,
    ) -> None:
        self.position = 0
        self.capacity = capacity
        self._layers = layers
        self._attention = attention
        self._rows = [
            [Rows(kept_rows(layer, capacity, chunk), shape, kind, store) for shape in layer.rows]
            if isinstance(layer, Cache)
            else []
            for layer in layers
        ]
        self._recurrent = [
            tuple(map(torch.zeros, layer.shapes)) if isinstance(layer, Recurrent) else () for layer in layers
        ]

    def angles(self, rope: Rope, tokens: int) -> Angles:
        """See `State`."""
        return rope.angles(self.position, tokens)

    def span(self, rows: int) -> tuple[int, int]:
        """See `State`."""
        return rows, self.position + rows

    def advance(self, tokens: int) -> None:
        """See `State`."""
        self.position += tokens

    def each(self, run: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """See `State`."""
        return run(self, *rows)

    def places(self, layer: int, tokens: int) -> Places:
        """See `State`."""
        return None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
        """See `State`. Raises FitError past the capacity."""
        keys, values = self.extend(layer, k, v)
        return self._attention(q, keys, values, scale, self._window(layer), sinks)

    def extend(self, layer: int, *rows: Tensor) -> tuple[Cached, ...]:
        """See `OneSequence`. Raises FitError past the capacity."""
        end, window = self.position + rows[0].shape[0], self._window(layer)
        if end > self.capacity:
            raise FitError(f"the sequence needs {end} positions", expected=f"at most {self.capacity} were planned")
        first = max(self.position - window + 1, 0) if window else 0
        return tuple(store.extend(self.position, x, first) for store, x in zip(self._rows[layer], rows, strict=True))

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float) -> Tensor:
        """See `OneSequence`."""
        return self._attention(q, k, v, scale, 0, None)

    def recurrent(self, layer: int) -> tuple[Tensor, ...]:
        """See `OneSequence`."""
        return self._recurrent[layer]

    def _window(self, layer: int) -> int:
        found = self._layers[layer]
        assert isinstance(found, Cache)
        return found.window


def state_bytes(layers: list[LayerState], capacity: int, chunk: int, kind: KvDtype) -> int:
    """Bytes that a `SequenceState` allocates."""
    return sum(
        kept_rows(layer, capacity, chunk) * sum(row_bytes(shape, kind) for shape in layer.rows)
        if isinstance(layer, Cache)
        else 4 * sum(map(prod, layer.shapes))
        for layer in layers
    )


def kept_rows(layer: Cache, capacity: int, chunk: int) -> int:
    """Rows that a cache holds at most for `capacity` tokens, `chunk` of them at once."""
    return min(capacity, layer.window - 1 + chunk) if layer.window else capacity
