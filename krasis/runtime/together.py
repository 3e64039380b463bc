"""Several sequences that go on together, so that what one token reads of the weights serves all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from krasis.models.blocks.rope import Angles, Rope
from krasis.models.state import Places
from krasis.runtime.state import SequenceState


class Together:
    """Implements `krasis.models.state.State`: row i of what is run is the next token of `sequences[i]`."""

    def __init__(self, sequences: Sequence[SequenceState]) -> None:
        self._sequences = sequences

    def angles(self, rope: Rope, tokens: int) -> Angles:
        """See `State`."""
        cos, sin = zip(*(sequence.angles(rope, 1) for sequence in self._sequences), strict=True)
        return torch.cat(cos), torch.cat(sin)

    def span(self, rows: int) -> tuple[int, int]:
        """See `State`."""
        return 1, max(sequence.position for sequence in self._sequences) + 1

    def advance(self, tokens: int) -> None:
        """See `State`."""
        for sequence in self._sequences:
            sequence.advance(1)

    def places(self, layer: int, tokens: int) -> Places:
        """See `State`."""
        return None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
        """See `State`. Raises FitError past a sequence's capacity."""

        def run(sequence: SequenceState, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return sequence.attend(layer, q, k, v, scale, sinks)

        return self.each(run, q, k, v)

    def each(self, run: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """See `State`."""
        parts = zip(self._sequences, *(torch.split(x, 1) for x in rows), strict=True)
        return torch.cat([run(*part) for part in parts])
