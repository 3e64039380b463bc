"""Every byte the CPU engine will allocate, known before anything is."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from krasis import models
from krasis.errors import FitError, InputError
from krasis.models.family import ModelSpec
from krasis.models.state import Cache, LayerState
from krasis.pack.manifest import Manifest
from krasis.runtime.backend import KvDtype
from krasis.runtime.state import state_bytes

PREFILL_CHUNK = 1024


@dataclass(frozen=True)
class Plan:
    """Bytes by purpose. `weights` are mapped from the pack and live in the page cache; the rest is allocated.

    `needs` gives what another context would allocate.
    """

    context: int
    weights: int
    kv: int
    workspace: int
    needs: Callable[[int], int] = field(repr=False, compare=False)

    @property
    def allocated(self) -> int:
        return self.kv + self.workspace

    @property
    def resident(self) -> int:
        return self.weights + self.allocated


def plan(spec: ModelSpec, manifest: Manifest, context: int, kv: KvDtype, layouts: tuple[str, ...]) -> Plan:
    """The plan for sequences of `context` tokens, reading the first of `layouts` that a segment has.

    Raises InputError where the model takes fewer positions.
    """
    if context > spec.max_positions:
        what, expected = f"a context of {context} tokens", f"at most the model's {spec.max_positions}"
        raise InputError(what, where="--context", expected=expected)
    layers = models.get(_family(spec)).states(spec)
    width = _block_width(manifest)

    def kept(tokens: int) -> int:
        return state_bytes(layers, tokens, PREFILL_CHUNK, kv)

    def workspace(tokens: int) -> int:
        return _workspace(spec, layers, width, tokens)

    return Plan(
        context=context,
        weights=_read_bytes(manifest, layouts),
        kv=kept(context),
        workspace=workspace(context),
        needs=lambda tokens: kept(tokens) + workspace(tokens),
    )


def check(plan: Plan, available: int) -> list[str]:
    """Notes on what will be slow. Raises FitError with the number that would fit."""
    if plan.allocated > available:
        what = f"a context of {plan.context} tokens needs {_gib(plan.allocated)} of memory"
        most = bisect_right(range(1, plan.context), available, key=plan.needs)
        hint = f"{most} tokens would fit" if most else "no context fits"
        raise FitError(what, where="RAM", expected=f"{_gib(available)} are available", hint=hint)
    if plan.resident > available:
        return [f"weights of {_gib(plan.weights)} exceed the {_gib(available)} of free memory: they are read from disk"]
    return []


def _read_bytes(manifest: Manifest, layouts: tuple[str, ...]) -> int:
    chosen: dict[str, tuple[int, int]] = {}
    order = (*layouts, "plain")
    for _, segment in manifest.segments():
        if segment.layout in order:
            rank = order.index(segment.layout)
            chosen[segment.name] = min(chosen.get(segment.name, (rank, segment.bytes)), (rank, segment.bytes))
    return sum(size for _, size in chosen.values())


def _block_width(manifest: Manifest) -> int:
    """The widest sum of a layer's dense outputs: about what a block makes of one token."""
    return max(
        sum(tensor.shape[0] for tensor in segment.tensors)
        for _, segment in manifest.segments()
        if segment.name.endswith(".dense")
    )


def _workspace(spec: ModelSpec, layers: list[LayerState], width: int, context: int) -> int:
    # An upper bound on what one block holds at once: a few float32 rows a token, and attention over the context, whose
    # keys and values are widened to float32, once more where sinks or padding join them.
    chunk = min(context, PREFILL_CHUNK)
    caches = [layer for layer in layers if isinstance(layer, Cache)]
    widest = max((max(layer.expanded, sum(heads * dim for heads, dim in layer.rows)) for layer in caches), default=0)
    return 4 * (chunk * (16 * spec.hidden_size + 3 * width + context) + 2 * context * widest + spec.vocab_size)


def _family(spec: ModelSpec) -> str:
    tag = spec.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
