"""The frame of every family: embed, run the blocks, normalize, project onto the vocabulary."""

from collections.abc import Callable, Sequence

from torch import Tensor

from krasis.models.blocks.norms import Norm
from krasis.models.blocks.rope import Angles, Rope
from krasis.models.family import Block, Linear, Weights
from krasis.models.state import State

Mixer = Callable[[Tensor, Angles, State], Tensor]
"""What mixes tokens, attention say: (x [tokens, H], angles, state) -> [tokens, H]."""


class Layer:
    """x + mixer(norm(x)), and then x + mlp(norm(x)), by the norms `input_norm` and `post_norm` of segment `name`.

    Implements `Block`: what the MLP gives is added by the norm that follows, which reads the sum anyway.
    """

    def __init__(
        self, weights: Weights, name: str, mixer: Mixer, mlp: Linear, eps: float, *, offset: float = 0.0
    ) -> None:
        self._input_norm, self._post_norm = (
            Norm(weights, name, norm, eps, offset=offset) for norm in ("input_norm", "post_norm")
        )
        self._mixer = mixer
        self._mlp = mlp

    def forward(self, x: Tensor, update: Tensor | None, angles: Angles, state: State) -> tuple[Tensor, Tensor]:
        x, normed = self._input_norm.after_adding(x, update)
        x, normed = self._post_norm.after_adding(x, self._mixer(normed, angles, state))
        return x, self._mlp(normed)


class Decoder:
    """Implements `family.Model` on the segments of `weight.base_file`. `observe`, if set, gets each block's output."""

    def __init__(
        self, weights: Weights, blocks: Sequence[Block], rope: Rope, eps: float, *, offset: float = 0.0
    ) -> None:
        self.observe: Callable[[int, Tensor], None] | None = None
        self._embed = weights.embedding("base", "embed")
        self._norm = Norm(weights, "base", "norm", eps, offset=offset)
        self._lm_head = weights.linear("head", "lm_head")
        self.blocks = blocks
        self.rope = rope

    def forward(self, ids: Tensor, state: State) -> Tensor:
        tokens = ids.shape[0]
        x, update = self._embed(ids), None
        angles = state.angles(self.rope, tokens)
        for layer, block in enumerate(self.blocks):
            x, update = block.forward(x, update, angles, state)
            if self.observe is not None:
                self.observe(layer, x + update)
        state.advance(tokens)
        return x if update is None else x + update

    def logits(self, hidden: Tensor) -> Tensor:
        return self._lm_head(self._norm(hidden))
