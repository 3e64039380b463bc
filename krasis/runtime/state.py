"""What one sequence remembers, allocated once for its whole context."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from krasis.errors import FitError, KrasisError
from krasis.models.blocks.rope import Angles, Rope
from krasis.models.state import Cache, Cached, LayerState, Places, Recurrent
from krasis.runtime.backend import Attention, KvDtype
from krasis.runtime.rows import Rows, Store, row_bytes, store_rows

Mix = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""What a recurrent layer ran of one sequence, and the rows that it was given."""


class SequenceState:
    """Implements `State` and `OneSequence` of `krasis.models.state` for `capacity` tokens, `chunk` of them at once.

    Rewinding `position` forgets what lies after it, where no layer is recurrent. What a window no longer needed may be
    gone then, and a KrasisError says so. `mixes`, unless None, gets what recurrent layers run.
    """

    _mixing: Mix | None = None

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
        self._begin()
        self._attention = attention
        self._rows = [
            [Rows(kept_rows(layer, capacity, chunk), shape, kind, store) for shape in layer.rows]
            if isinstance(layer, Cache)
            else []
            for layer in layers
        ]
        windows = (isinstance(layer, Cache) and layer.window for layer in layers)
        self._moving = [rows[0] for rows, window in zip(self._rows, windows, strict=True) if window]
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
        # Nothing else may outlive a layer: of a prompt it is large.
        self._mixing = (run, rows) if self.mixes is not None else None
        return run(self, *rows)

    def places(self, layer: int, tokens: int) -> Places:
        """See `State`."""
        return None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
        """See `State`. Raises FitError past the capacity."""
        keys, values = self.extend(layer, k, v)
        return self._attention(q, keys, values, scale, self._window(layer), sinks)

    def _begin(self) -> None:
        self.mixes: list[Mix] | None = None
        self._lost, self._tried = False, 0
        self._kept: list[Tensor] = []

    @torch.inference_mode()
    def attempt(self) -> None:
        """What the next pass runs may be taken back in part, until `commit`."""
        memories = self._memories()
        if len(self._kept) < len(memories):
            self._kept = [torch.empty_like(memory) for memory in memories]
        if memories:
            torch._foreach_copy_(self._kept, memories)
        self._tried, self.mixes = self.position, []

    def commit(self) -> None:
        """What was run stays."""
        self.mixes = None

    @torch.inference_mode()
    def take_back(self, position: int) -> None:
        """Forget what lies at `position` and after it.

        Recurrent layers go back to what they were at `attempt`, and run again what of its pass is left. Where nothing
        was attempted they can't, and nothing may follow.
        """
        if position == self.position:
            return
        if memories := self._memories():
            self._mix_again(memories, position - self._tried)
        self.position = position

    def _mix_again(self, memories: list[Tensor], tokens: int) -> None:
        if self.mixes is None or tokens < 1:
            self._lost = True
            return
        torch._foreach_copy_(memories, self._kept)
        mixes, self.mixes = self.mixes, None
        for run, rows in mixes:
            run(self, *(x[:tokens] for x in rows))
        self.mixes = mixes

    def check(self, tokens: int) -> None:
        """Raises FitError where so many more are too many, and KrasisError where none may follow."""
        if (end := self.position + tokens) > self.capacity:
            raise FitError(f"the sequence needs {end} positions", expected=f"at most {self.capacity} were planned")
        if self._lost:
            raise KrasisError("recurrent layers remember tokens that were taken back", expected="a new state")

    @property
    def room(self) -> int:
        """The position of the first token for which rows have to move. While it is the same, all lie where they did."""
        return min((rows.end for rows in self._moving), default=self.capacity)

    def extend(self, layer: int, *rows: Tensor) -> tuple[Cached, ...]:
        """See `OneSequence`. Raises FitError past the capacity."""
        self.check(rows[0].shape[0])
        window = self._window(layer)
        first = max(self.position - window + 1, 0) if window else 0
        return tuple(store.extend(self.position, x, first) for store, x in zip(self._rows[layer], rows, strict=True))

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float) -> Tensor:
        """See `OneSequence`."""
        return self._attention(q, k, v, scale, 0, None)

    def recurrent(self, layer: int) -> tuple[Tensor, ...]:
        """See `OneSequence`."""
        if self.mixes is not None and self._mixing is not None:
            self.mixes.append(self._mixing)
        return self._memory(layer)

    def _memory(self, layer: int) -> tuple[Tensor, ...]:
        return self._recurrent[layer]

    def _memories(self) -> list[Tensor]:
        """All that recurrent layers remember."""
        return [memory for layer in range(len(self._layers)) for memory in self._memory(layer)]

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


def undo_bytes(layers: list[LayerState]) -> int:
    """Bytes that `SequenceState.attempt` allocates."""
    return sum(4 * sum(map(prod, layer.shapes)) for layer in layers if isinstance(layer, Recurrent))


def kept_rows(layer: Cache, capacity: int, chunk: int) -> int:
    """Rows that a cache holds at most for `capacity` tokens, `chunk` of them at once."""
    return min(capacity, layer.window - 1 + chunk) if layer.window else capacity
