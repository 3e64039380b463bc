"""What a token takes: the bytes that decoding it must read, and the multiply-adds of its products."""

from collections.abc import Iterable, Iterator
from math import prod

import msgspec

from krasis.models.family import ModelSpec
from krasis.models.state import LayerState
from krasis.pack.manifest import Segment
from krasis.pack.record import Section, TensorSpec, sections
from krasis.runtime.backend import KvDtype
from krasis.runtime.state import state_bytes

HEAD, EMBEDDING = "head", ("base", "embed")


def bytes_per_token(
    spec: ModelSpec, segments: Iterable[Segment], layers: list[LayerState], kv: KvDtype, position: int
) -> int:
    """Bytes of weights and state that a token reads which follows `position` others."""
    return weights_per_token(spec, segments) + state_bytes(layers, position + 1, 1, kv)


def weights_per_token(spec: ModelSpec, segments: Iterable[Segment]) -> int:
    """Bytes of weights that a token reads, pads and scales included.

    Of routed experts those it chooses, of embeddings its row, of all else everything.
    """
    return sum(
        _records_read(spec, segment) * sum(_read(segment.name, section) for section in _sections(segment))
        for segment in segments
    )


def routed_share(spec: ModelSpec, segments: list[Segment]) -> float:
    """Of the bytes of weights that a token reads, the part that it chose: another token adds as much at most."""
    dense = [segment for segment in segments if not segment.name.endswith(".experts")]
    return 1 - weights_per_token(spec, dense) / weights_per_token(spec, segments)


def products_per_token(spec: ModelSpec, segments: Iterable[Segment]) -> int:
    """Multiply-adds with weights, pads included, for a token of a prompt, whose last one alone meets the head."""
    return sum(
        _records_read(spec, segment) * prod(tensor.padded_shape)
        for segment, tensor in _matrices(segments)
        if segment.name != HEAD and (segment.name, tensor.name) != EMBEDDING
    )


def _matrices(segments: Iterable[Segment]) -> Iterator[tuple[Segment, TensorSpec]]:
    return ((segment, tensor) for segment in segments for tensor in segment.tensors if len(tensor.shape) == 2)


def _records_read(spec: ModelSpec, segment: Segment) -> int:
    if not segment.name.endswith(".experts"):
        return segment.count
    # Every family has it under this name, though not every model need have experts.
    return int(msgspec.structs.asdict(spec)["experts_per_token"])


def _sections(segment: Segment) -> tuple[Section, ...]:
    return sections(segment.tensors, segment.layout)


def _read(segment: str, section: Section) -> int:
    return section.bytes // (section.shape[0] if (segment, section.tensor) == EMBEDDING else 1)
