"""A backend's view of a pack: every matrix where it lies, turned into a product on demand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from krasis.errors import InputError
from krasis.models.blocks.linear import biased
from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import Ops
from krasis.pack.manifest import Segment
from krasis.runtime.backend import Backend, ExpertRecords, PackedMatrix, packed_matrix, strip_parts, with_beside
from krasis.runtime.experts import RoutedExperts
from krasis.runtime.moments import Moments
from krasis.runtime.tracer import Tracer

PLAIN = "plain"


class Stored(Protocol):
    """A pack as its weights are asked of it, wherever they lie; see `krasis.pack.reader.Pack`."""

    @property
    def path(self) -> Path: ...

    @property
    def layouts_of(self) -> dict[str, tuple[str, ...]]: ...

    def segment(self, name: str, layout: str) -> Segment: ...

    def arrays(self, name: str, layout: str, index: int = 0) -> dict[tuple[str, str], Tensor]: ...


class PackWeights:
    """Implements `krasis.models.family.Weights`. `layout` forces one; else the backend's best that the pack has."""

    def __init__(
        self,
        pack: Stored,
        backend: Backend,
        *,
        layout: str | None = None,
        tracer: Tracer | None = None,
        moments: Moments | None = None,
    ) -> None:
        self._pack, self._backend, self._tracer, self._moments = pack, backend, tracer, moments
        self.ops: Ops = backend.ops
        self._wanted = (layout,) if layout else backend.layouts

    def tensor(self, segment: str, name: str) -> Tensor:
        return self._backend.tensor(self._stored(segment, name))

    def embedding(self, segment: str, name: str) -> Linear:
        return self._backend.embedding(self._stored(segment, name))

    def linear(self, segment: str, name: str) -> Linear:
        # Routers, gates and logits are sums that rounding would move.
        return self._backend.linear(self._matrices(segment, 0)[name], wide=not segment.endswith(".dense"))

    def linears(self, segment: str, names: Sequence[str]) -> Linear:
        found = self._matrices(segment, 0)
        return self._backend.linears([found[name] for name in names])

    def heads(self, segment: str, name: str) -> Heads:
        count = self._pack.segment(segment, self._layout(segment)).count
        return self._backend.heads([self._matrices(segment, head)[name] for head in range(count)])

    def experts(self, segment: str, activation: Activation, beside: Linear | None = None) -> Experts:
        layer = int(segment.split(".")[1])
        experts = None if self._moments else self._backend.experts(layer, self._records(segment), activation, beside)
        if experts is None:
            experts = with_beside(self._one_by_one(segment, layer, activation), beside)
        return experts if self._tracer is None else _traced(experts, layer, self._tracer)

    def _stored(self, segment: str, name: str) -> Tensor:
        return self._pack.arrays(segment, PLAIN)[name, "values"]

    def _records(self, segment: str) -> ExpertRecords:
        found = self._pack.segment(segment, self._layout(segment))
        return ExpertRecords(self._matrices(segment, 0), found.count, found.record_bytes)

    def _one_by_one(self, segment: str, layer: int, activation: Activation) -> Experts:
        """Experts as two products each, whatever they are made of, whoever watches them."""

        def load(expert: int) -> tuple[Linear, Linear]:
            found = self._matrices(segment, expert)
            w13, w2 = (
                _with_bias(self._backend.linear(found[matrix]), found.get(bias))
                for matrix, bias in (("w13", "b13"), ("w2", "b2"))
            )
            return w13, w2

        if self._moments is None:
            return RoutedExperts(load, activation)
        return self._moments.watch(layer, load, lambda watched: RoutedExperts(watched, activation))

    def _matrices(self, segment: str, index: int) -> dict[str, PackedMatrix]:
        layout = self._layout(segment)
        arrays = self._pack.arrays(segment, layout, index)
        specs = self._pack.segment(segment, layout).tensors
        return {spec.name: packed_matrix(spec, layout, arrays) for spec in specs}

    def _layout(self, segment: str) -> str:
        have = self._pack.layouts_of.get(segment, ())
        for layout in (*self._wanted, PLAIN):
            if layout in have:
                return layout
        expected = f"a layout that the {self._backend.name} backend runs: {', '.join(self._wanted)}"
        hint = "convert again with --layouts"
        raise InputError(
            f"{segment} is packed as {', '.join(have) or 'nothing'}",
            where=self._pack.path,
            expected=expected,
            hint=hint,
        )


def _with_bias(linear: Linear, bias: PackedMatrix | None) -> Linear:
    if bias is None:
        return linear
    assert bias.values is not None
    return biased(linear, strip_parts(bias.values, bias.spec))


def _traced(experts: Experts, layer: int, tracer: Tracer) -> Experts:
    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        tracer.record(layer, ids, weights)
        return experts(x, ids, weights)

    return run
