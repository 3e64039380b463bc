"""The frame of every family: embed, run the blocks, normalize, project onto the vocabulary."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from krasis.models.blocks.norms import RmsNorm
from krasis.models.blocks.rope import Angles, Rope
from krasis.models.family import Weights
from krasis.models.state import State


class Block(Protocol):
    """One layer."""

    def forward(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        """float32 [tokens, H] -> the same, residuals added."""


class Decoder:
    """Implements `family.Model` on the segments of `weight.base_file`. `observe`, if set, gets each block's output."""

    def __init__(
        self, weights: Weights, blocks: Sequence[Block], rope: Rope, eps: float, *, offset: float = 0.0
    ) -> None:
        self.observe: Callable[[int, Tensor], None] | None = None
        self._embed = weights.tensor("base", "embed")
        self._norm = RmsNorm(weights.tensor("base", "norm"), eps, offset=offset)
        self._lm_head = weights.linear("head", "lm_head")
        self.blocks = blocks
        self.rope = rope

    def forward(self, ids: Tensor, state: State) -> Tensor:
        x = functional.embedding(ids, self._embed).float()
        angles = self.rope.angles(state.position, len(ids))
        for layer, block in enumerate(self.blocks):
            x = block.forward(x, angles, state)
            if self.observe is not None:
                self.observe(layer, x)
        state.position += len(ids)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self._lm_head(self._norm(hidden))
