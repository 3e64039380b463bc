"""What a device must hold besides weights: state, workspace and overhead, in bytes."""

from dataclasses import asdict, dataclass, replace

from krasis.models.state import Cache, Recurrent
from krasis.runtime.backend import KvDtype
from krasis.runtime.drafts import WIDTHS
from krasis.runtime.placement.outline import Outline
from krasis.runtime.state import state_bytes, undo_bytes

MIB = 1 << 20

CONTEXT_BYTES = 768 * MIB
"""The driver's context, modules of kernels, and the workspace of libraries: 693 MiB measured on an H100 (driver of CUDA
13.0, torch 2.11) after products and attention.
"""

GRAPH_BYTES, GRAPH_LAYER_BYTES = 72 * MIB, MIB
"""A captured step: what it takes of itself (70 MiB measured, with its first kernels), and for each layer's nodes."""

SLACK_BYTES = 64 * MIB
"""One allocation a purpose, each rounded up to the allocator's 2 MiB; and what lies idle between a prompt's tensors,
whose sizes differ: torch's allocator, imitated over the allocations of 10,000 tokens of Qwen3-Coder-Next, reserves
1,307 MB for the 873 MB that are held at once, and `activations` plans 1,270.
"""

RING_BUFFERS, PART_BYTES = 3, 128 * MIB
"""Buffers that streamed experts pass through, and the most that one holds: whole experts of a layer, at least one."""

DENSE_BUFFERS = 2
"""Buffers, each of what passes of the largest layer, that streamed dense weights pass through: one is copied to while
kernels read the other."""

LEAST_CHUNK = 256
"""Tokens of a prompt that are taken together where memory is short."""

CHUNK_SHARE = 8
"""At most one part in so many of the budget goes to taking more tokens together."""


@dataclass(frozen=True)
class Workspace:
    """Bytes by purpose."""

    expert_ring: int
    dense_ring: int
    prefill: int
    decode: int
    graph: int
    context: int
    slack: int

    @property
    def bytes(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Held:
    """What a device holds besides weights, for prompts taken `chunk` tokens at a time."""

    chunk: int
    kv: int
    workspace: Workspace

    @property
    def bytes(self) -> int:
        return self.kv + self.workspace.bytes


@dataclass(frozen=True)
class Memory:
    """Bytes for sequences of `context` tokens, whose prompts have `prompt` of them as a rule."""

    outline: Outline
    context: int
    kv: KvDtype
    prompt: int

    def held(self, budget: int, *, stream_experts: bool, stream_dense: bool) -> Held:
        """Raising the budget raises this by less, so what is left for weights never shrinks.

        The prompt is taken at once if that costs no more than the budget's part in `CHUNK_SHARE`, else in chunks of as
        many tokens as fit there, or in `LEAST_CHUNK`. State of sliding windows grows with the chunk too. Where dense
        weights are streamed, no more is taken than leaves room for the rest.
        """
        layers = self.outline.layers
        fixed = Workspace(
            expert_ring=expert_ring(self.outline) if stream_experts else 0,
            dense_ring=DENSE_BUFFERS * max(layer.passing for layer in layers) if stream_dense else 0,
            prefill=0,
            decode=activations(self.outline, 1, self.context),
            graph=GRAPH_BYTES + GRAPH_LAYER_BYTES * len(layers) + kept_by_steps(self.outline),
            context=CONTEXT_BYTES,
            slack=SLACK_BYTES,
        )
        least, most = self._growing(min(LEAST_CHUNK, self.prompt)), self._growing(self.prompt)
        share = self._growing(1) + budget // CHUNK_SHARE
        if stream_dense:
            share = min(share, budget - fixed.bytes - self.outline.kept)
        grown = max(least, min(most, share))
        chunk = self._chunk(grown)
        kv = self._state(chunk)
        return Held(chunk, kv, replace(fixed, prefill=grown - kv))

    def _chunk(self, grown: int) -> int:
        """The most tokens for which `_growing` is within `grown`, at most the prompt."""
        low, high = 1, self.prompt
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._growing(middle) <= grown else (low, middle - 1)
        return low

    def _growing(self, chunk: int) -> int:
        """State, and activations of a chunk."""
        return self._state(chunk) + activations(self.outline, chunk, self.context)

    def _state(self, chunk: int) -> int:
        states = self.outline.states
        return state_bytes(states, self.context, chunk, self.kv) + undo_bytes(states)


def expert_ring(outline: Outline) -> int:
    """Bytes of the buffers that streamed experts pass through."""
    parts = [
        experts.bytes * max(1, min(experts.count, PART_BYTES // experts.bytes))
        for layer in outline.layers
        if (experts := layer.experts)
    ]
    return RING_BUFFERS * max(parts, default=0)


def kept_by_steps(outline: Outline) -> int:
    """Bytes that captured steps keep of each token: logits, and what recurrent layers are given, to run it again."""
    layers = zip(outline.layers, outline.states, strict=True)
    given = sum(2 * layer.values for layer, state in layers if isinstance(state, Recurrent))
    return (sum(WIDTHS) + 1) * (4 * outline.spec.vocab_size + given)


def activations(outline: Outline, tokens: int, context: int) -> int:
    """Bytes that a forward of `tokens` holds at once, and the logits of the last one.

    A token has: hidden state float32 and its update 16-bit, the normed input and the mixed output 16-bit, what the
    widest layer's dense matrices make 16-bit, and for each expert it chooses its id, weight, and values 16-bit. Latent
    attention also widens the context's keys and values of a few heads to 16 bits.
    """
    hidden = (4 + 2 + 2 + 2) * outline.spec.hidden_size
    dense = 2 * max(layer.values for layer in outline.layers)
    routed = max((layer.experts.values for layer in outline.layers if layer.experts), default=0)
    expanded = max((layer.expanded for layer in outline.states if isinstance(layer, Cache)), default=0)
    a_token = hidden + dense + (outline.chosen * (2 * routed + 8 + 4) if routed else 0)
    return tokens * a_token + 2 * context * expanded + 4 * outline.spec.vocab_size
