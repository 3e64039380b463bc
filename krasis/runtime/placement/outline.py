"""What a plan needs to know of a pack: bytes and multiply-adds, layer by layer."""

from dataclasses import dataclass
from math import prod

import msgspec

from krasis import models
from krasis.errors import InputError
from krasis.models.conform import check_manifest, spec_of
from krasis.models.family import ModelSpec
from krasis.models.state import LayerState
from krasis.pack.manifest import Manifest, Segment
from krasis.pack.record import SECTION_ALIGN, align, sections
from krasis.runtime.plan import chosen
from krasis.runtime.work import EMBEDDING, HEAD

LAYOUT = "marlin"
"""The byte order that GPUs read."""


@dataclass(frozen=True)
class Experts:
    """Routed experts of a layer, `count` of them. Of one: bytes of its record; for a token it is chosen by,
    multiply-adds, and 16-bit values that a forward makes (outputs of its matrices, and what goes into the last).
    """

    count: int
    bytes: int
    products: int
    values: int


@dataclass(frozen=True)
class Layer:
    """Bytes of its dense weights (attention, shared expert, dense MLP, norms, router), of which devices always have the
    `kept` ones (norms, router); multiply-adds and values that they take for a token; and its experts if it has any.
    """

    dense: int
    kept: int
    products: int
    values: int
    experts: Experts | None

    @property
    def passing(self) -> int:
        """Bytes of the dense weights that may pass through a device."""
        return self.dense - self.kept


@dataclass(frozen=True)
class Outline:
    """`embedding` stays in host memory; `norm` is the last one. Bytes as they lie in the pack, pads included."""

    spec: ModelSpec
    states: list[LayerState]
    layers: tuple[Layer, ...]
    embedding: int
    norm: int
    head: int
    head_products: int

    @property
    def chosen(self) -> int:
        """Experts that a token chooses."""
        return int(msgspec.structs.asdict(self.spec)["experts_per_token"])

    @property
    def dense(self) -> int:
        """Bytes of all weights but experts and embedding."""
        return self.norm + self.head + sum(layer.dense for layer in self.layers)

    @property
    def kept(self) -> int:
        """Bytes of the dense weights that lie on every device: last norm, head, and what layers keep."""
        return self.norm + self.head + sum(layer.kept for layer in self.layers)

    @property
    def experts(self) -> int:
        """Bytes of all experts."""
        return sum(layer.experts.count * layer.experts.bytes for layer in self.layers if layer.experts)


def outline(manifest: Manifest, where: object = "") -> Outline:
    """Raises InputError where the pack has no layout for GPUs, or lacks what its model spec asks for."""
    spec = spec_of(manifest, where)
    family = models.of(spec)
    check_manifest(manifest, family, spec, where)
    found = {segment.name: segment for segment in chosen(manifest, (LAYOUT,))}
    every = {segment.name for _, segment in manifest.segments()}
    if missing := sorted(every - found.keys()):
        hint = f"convert again with --layouts {LAYOUT}"
        raise InputError(f"{missing[0]} is not in layout {LAYOUT}", where=where, expected="what GPUs read", hint=hint)
    base, head = found["base"], found[HEAD]
    sizes = {section.tensor: section.bytes for section in sections(base.tensors, base.layout)}
    return Outline(
        spec,
        family.states(spec),
        tuple(_layer(layer, found) for layer in range(spec.num_layers)),
        embedding=sizes[EMBEDDING[1]],
        norm=align(sum(sizes.values()) - sizes[EMBEDDING[1]], SECTION_ALIGN),
        head=head.bytes,
        head_products=_products(head),
    )


def passing_segments(layer: int) -> tuple[str, str]:
    """All that dense weights of a layer which may pass through a device may lie in; not every family has both.

    Norms and router may not: a family reads them once, when it is built.
    """
    return f"layers.{layer}.dense", f"layers.{layer}.heads"


def _layer(layer: int, segments: dict[str, Segment]) -> Layer:
    name = f"layers.{layer}"
    routed = segments.get(f"{name}.experts")
    kept = segments[name]
    dense = [kept, *(segments[key] for key in passing_segments(layer) if key in segments)]
    return Layer(
        dense=sum(segment.bytes for segment in dense),
        kept=kept.bytes,
        products=sum(segment.count * _products(segment) for segment in dense),
        values=sum(segment.count * _values(segment) for segment in dense),
        experts=None if routed is None else _experts(routed),
    )


def _experts(segment: Segment) -> Experts:
    between = next(tensor.padded_shape[1] for tensor in segment.tensors if tensor.name == "w2")
    return Experts(segment.count, segment.record_bytes, _products(segment), _values(segment) + between)


def _products(segment: Segment) -> int:
    """Of one record."""
    return sum(prod(tensor.padded_shape) for tensor in segment.tensors if len(tensor.shape) == 2)


def _values(segment: Segment) -> int:
    return sum(tensor.padded_shape[0] for tensor in segment.tensors if len(tensor.shape) == 2)
