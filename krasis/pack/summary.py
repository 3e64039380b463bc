"""What a pack holds, kind by kind: each kind of matrix described once however many layers and experts repeat it."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

from krasis import quant
from krasis.pack.record import TensorSpec, record_bytes, sections

Figures = Mapping[str, Sequence[float]]
"""SEGMENT.TENSOR -> a figure for each record's matrix."""


class Described(Protocol):
    """A segment, planned or written."""

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> str: ...

    @property
    def tensors(self) -> tuple[TensorSpec, ...]: ...

    @property
    def count(self) -> int: ...


def matrices(segments: Iterable[Described], errors: Figures, weighted: Figures) -> list[dict[str, Any]]:
    """One entry per kind, codec and shape of quantized matrix, in pack order.

    `count` matrices, each once whatever the layouts, take `bytes` in all layouts together. `rel_rms_error` is the root
    mean square of their relative errors, `worst_rel_rms_error` the largest, None where `errors` has none;
    `weighted_rel_rms_error` is the same of those weighted by importance.
    """
    found: dict[tuple[str, TensorSpec], list[Described]] = {}
    for segment in segments:
        for tensor in segment.tensors:
            if tensor.quantized:
                found.setdefault((kind(segment.name, tensor.name), tensor), []).append(segment)
    return [_entry(what, tensor, held, errors, weighted) for (what, tensor), held in found.items()]


def sizes(segments: Iterable[Described]) -> dict[str, int]:
    """Kind of segment (`layers` is what they keep as it is, then `dense`, `experts`) -> its bytes in all layouts."""
    found: dict[str, int] = {}
    for segment in segments:
        what = _segment_kind(segment.name)
        found[what] = found.get(what, 0) + segment.count * record_bytes(segment.tensors, segment.layout)
    return found


def padding_bytes(segments: Iterable[Described]) -> int:
    """How many bytes hold no weight: pads of matrices, and zeros up to the borders of sections and records."""
    return sum(
        segment.count * (record_bytes(segment.tensors, segment.layout) - sum(map(_logical_bytes, segment.tensors)))
        for segment in segments
    )


def stored_bytes(tensor: TensorSpec, layout: str) -> int:
    """Bytes of a tensor of one record, its pads included."""
    return sum(section.bytes for section in sections((tensor,), layout))


def kind(segment: str, tensor: str) -> str:
    """`layers.3.experts` and `w2` -> `experts.w2`."""
    return f"{_segment_kind(segment)}.{tensor}"


def _segment_kind(name: str) -> str:
    """`layers.3.experts` -> `experts`; `layers.3` -> `layers`."""
    return next((word for word in reversed(name.split(".")) if not word.isdecimal()), name)


def _entry(what: str, tensor: TensorSpec, held: list[Described], errors: Figures, weighted: Figures) -> dict[str, Any]:
    counts = {segment.name: segment.count for segment in held}
    return {
        "kind": what,
        "codec": tensor.codec,
        "group_size": tensor.group_size,
        "shape": list(tensor.shape),
        "padded_shape": list(tensor.padded_shape),
        "count": sum(counts.values()),
        "bytes": sum(segment.count * stored_bytes(tensor, segment.layout) for segment in held),
        **_spread("rel_rms_error", _figures(counts, tensor, errors)),
        **_spread("weighted_rel_rms_error", _figures(counts, tensor, weighted)),
    }


def _figures(names: Iterable[str], tensor: TensorSpec, figures: Figures) -> list[float]:
    return [figure for name in names for figure in figures.get(f"{name}.{tensor.name}", ())]


def _spread(name: str, figures: list[float]) -> dict[str, float | None]:
    worst = max(figures, default=None)
    # Relative to the worst, as the square of a figure may overflow.
    mean = worst and worst * (sum((figure / worst) ** 2 for figure in figures) / len(figures)) ** 0.5
    return {name: mean, f"worst_{name}": worst}


def _logical_bytes(tensor: TensorSpec) -> int:
    """What the tensor would take without any pad: its codes and scales, or its values."""
    codec = quant.get(tensor.codec)
    codes = -(-prod(tensor.shape) * codec.BITS // 8)
    if not tensor.quantized:
        return codes
    n, k = tensor.shape
    return codes + n * -(-k // tensor.group_size) * codec.SCALE_DTYPE.itemsize
