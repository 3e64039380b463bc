"""Every byte the CPU engine will allocate, known before anything is."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from krasis import models
from krasis.errors import FitError, InputError
from krasis.models.family import ModelSpec
from krasis.models.state import Cache, LayerState
from krasis.pack.manifest import Manifest, Segment
from krasis.runtime.backend import KvDtype
from krasis.runtime.state import state_bytes, undo_bytes

PREFILL_CHUNK = 1024

Load = Literal["mapped", "copied"]
"""Where weights are read: the pack's own pages in the page cache, or a copy in anonymous memory."""


@dataclass(frozen=True)
class Plan:
    """Bytes by purpose. Mapped `weights` live in the page cache; copied ones are allocated, as is the rest.

    `needs` gives what another context and another number of sequences would allocate.
    """

    context: int
    sequences: int
    load: Load
    weights: int
    kv: int
    workspace: int
    needs: Callable[[int, int], int] = field(repr=False, compare=False)

    @property
    def allocated(self) -> int:
        return self.kv + self.workspace + (self.weights if self.load == "copied" else 0)

    @property
    def resident(self) -> int:
        return self.weights + self.kv + self.workspace


def plan(
    spec: ModelSpec,
    manifest: Manifest,
    context: int,
    kv: KvDtype,
    layouts: tuple[str, ...],
    load: Load = "mapped",
    sequences: int = 1,
) -> Plan:
    """The plan for so many sequences of `context` tokens, reading the first of `layouts` that a segment has.

    Raises InputError where the model takes fewer positions.
    """
    check_context(spec, context)
    layers = models.of(spec).states(spec)
    width = _block_width(manifest)
    weights = sum(segment.bytes for segment in chosen(manifest, layouts))
    copies = weights if load == "copied" else 0

    def kept(tokens: int, sequences: int) -> int:
        return sequences * state_bytes(layers, tokens, PREFILL_CHUNK, kv) + undo_bytes(layers)

    def workspace(tokens: int, sequences: int) -> int:
        return _workspace(spec, layers, width, tokens, sequences)

    return Plan(
        context=context,
        sequences=sequences,
        load=load,
        weights=weights,
        kv=kept(context, sequences),
        workspace=workspace(context, sequences),
        needs=lambda tokens, sequences: copies + kept(tokens, sequences) + workspace(tokens, sequences),
    )


def check_context(spec: ModelSpec, context: int, where: str = "--context") -> None:
    """Raises InputError where the model takes fewer positions."""
    if context > spec.max_positions:
        what, expected = f"a context of {context} tokens", f"at most the model's {spec.max_positions}"
        raise InputError(what, where=where, expected=expected)


def check(plan: Plan, available: int) -> list[str]:
    """Notes on what will be slow. Raises FitError with the number that would fit."""
    if plan.allocated > available:
        copies = f" with a copy of {gib(plan.weights)} of weights" if plan.load == "copied" else ""
        several = plan.sequences > 1
        whose, needs = (f"{plan.sequences} sequences", "need") if several else ("a context", "needs")
        what = f"{whose} of {plan.context} tokens{copies} {needs} {gib(plan.allocated)} of memory"
        most = bisect_right(range(1, plan.context), available, key=lambda tokens: plan.needs(tokens, 1))
        hint = f"{most} tokens would fit" if most else "no context fits"
        if fewer := bisect_right(range(1, plan.sequences), available, key=lambda n: plan.needs(plan.context, n)):
            hint = f"--sequences {fewer} would fit"
        elif several and most:
            hint = f"one sequence of {hint}"
        mapped = plan.allocated - plan.weights
        if copies and not fewer and not most and mapped <= available:
            hint = f"--load mapped needs {gib(mapped)}"
        raise FitError(what, where="RAM", expected=f"{gib(available)} are available", hint=hint)
    if plan.resident > available:
        return [f"weights of {gib(plan.weights)} exceed the {gib(available)} of free memory: they are read from disk"]
    return []


def chosen(manifest: Manifest, layouts: tuple[str, ...]) -> list[Segment]:
    """Each segment of the pack once, in the first of `layouts` that it has."""
    best: dict[str, tuple[int, Segment]] = {}
    order = (*layouts, "plain")
    for _, segment in manifest.segments():
        if segment.layout in order:
            rank = order.index(segment.layout)
            if segment.name not in best or rank < best[segment.name][0]:
                best[segment.name] = (rank, segment)
    return [segment for _, segment in best.values()]


def _block_width(manifest: Manifest) -> int:
    """The widest sum of a layer's dense outputs: about what a block makes of one token."""
    return max(
        sum(tensor.shape[0] for tensor in segment.tensors)
        for _, segment in manifest.segments()
        if segment.name.endswith(".dense")
    )


def _workspace(spec: ModelSpec, layers: list[LayerState], width: int, context: int, sequences: int) -> int:
    # An upper bound on what one block holds at once: a few float32 rows a token, and attention over the context, whose
    # keys and values are widened to float32, once more where sinks or padding join them; and on what all blocks hold of
    # the one token that is replayed.
    block = 16 * spec.hidden_size + 3 * width
    chunk = max(min(context, PREFILL_CHUNK), sequences)
    caches = [layer for layer in layers if isinstance(layer, Cache)]
    widest = max((max(layer.expanded, sum(heads * dim for heads, dim in layer.rows)) for layer in caches), default=0)
    return 4 * (chunk * (block + context) + spec.num_layers * block + 2 * context * widest + spec.vocab_size)


def gib(size: int) -> str:
    """Bytes as refusals give them."""
    return f"{size / 2**30:.2f} GiB"
