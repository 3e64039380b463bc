"""The kinds of matrices in a pack, each described once however many layers and experts repeat it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from krasis.pack.record import TensorSpec


class Described(Protocol):
    """A segment, planned or written."""

    @property
    def name(self) -> str: ...

    @property
    def tensors(self) -> tuple[TensorSpec, ...]: ...


def matrices(segments: Iterable[Described], errors: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One entry per kind, codec and shape of quantized matrix, in pack order.

    `rel_rms_error` is the root mean square of the matrices' relative errors, None where `errors` has none.
    """
    found: dict[tuple[str, TensorSpec], dict[str, Sequence[float]]] = {}
    for segment in segments:
        for tensor in segment.tensors:
            if tensor.quantized:
                name = f"{segment.name}.{tensor.name}"
                found.setdefault((kind(segment.name, tensor.name), tensor), {})[name] = errors.get(name, ())
    return [
        _entry(what, tensor, [e for figures in by_name.values() for e in figures])
        for (what, tensor), by_name in found.items()
    ]


def kind(segment: str, tensor: str) -> str:
    """`layers.3.experts` and `w2` -> `experts.w2`."""
    return f"{segment.rsplit('.', 1)[-1]}.{tensor}"


def _entry(what: str, tensor: TensorSpec, errors: list[float]) -> dict[str, Any]:
    return {
        "kind": what,
        "codec": tensor.codec,
        "group_size": tensor.group_size,
        "shape": list(tensor.shape),
        "padded_shape": list(tensor.padded_shape),
        "rel_rms_error": (sum(e * e for e in errors) / len(errors)) ** 0.5 if errors else None,
    }
