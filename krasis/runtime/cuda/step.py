"""A few tokens as one captured graph: nothing of it is decided on the host."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krasis.runtime.state import Mix


@dataclass(frozen=True)
class Found:
    """Hidden states [tokens, H], logits float32 [tokens, vocabulary], what recurrent layers ran of several tokens."""

    hidden: Tensor
    logits: Tensor | None = None
    mixes: list[Mix] | None = None


Forward = Callable[[Tensor], Found]
"""Of ids int32 [tokens]."""


class Step:
    """`forward` of `tokens` tokens, captured once and replayed ever after.

    What it reads of the sequence lies on the device. On the emulated one it is called anew. Steps of one `pool` share
    memory: results hold until the next one is run.
    """

    def __init__(self, forward: Forward, tokens: int, device: torch.device, pool: Any = None) -> None:
        self._forward = forward
        self._ids = torch.zeros(tokens, dtype=torch.int32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture(pool)

    @property
    def pool(self) -> Any:
        """Where its memory is from."""
        return None if self._graph is None else self._graph.pool()

    def __call__(self, ids: Tensor) -> Found:
        """See `Forward`."""
        self._ids.copy_(ids)
        if self._graph is None:
            return self._forward(self._ids)
        self._graph.replay()
        return self._found

    def _capture(self, pool: Any) -> None:
        # Libraries set themselves up when first called, which can't be captured.
        self._forward(self._ids)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._found = self._forward(self._ids)
