"""INT4 experts quantized by what a calibration run saw of their inputs."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from krasis import layout as layouts
from krasis.convert.parts import padded
from krasis.errors import InputError
from krasis.heat.imatrix import Imatrix
from krasis.native import feedback
from krasis.native.quantize import Target, pack
from krasis.pack.record import TensorSpec
from krasis.quant import int4

LAYERS_HELD = 2
"""Layers whose moments are kept in memory: threads may still be at the last when another is begun."""


@dataclass(frozen=True)
class Guide:
    """What is known of a matrix's inputs.

    `importance` float32 [K] weights the search; `shares` float32 [padded K, padded K] feed errors back, unless None.
    """

    importance: Tensor
    shares: Tensor | None


@dataclass(frozen=True)
class _Layer:
    importance: dict[str, Tensor]
    shares: Tensor | None


class Calibration:
    """An imatrix file in use. May be asked from any thread. Raises InputError for one of another model than `model`."""

    def __init__(self, path: Path, model: dict[str, Any], *, feedback: bool) -> None:
        self._imatrix = Imatrix(path)
        self._imatrix.check_model(model)
        self._feedback = feedback
        self._layers: OrderedDict[int, _Layer] = OrderedDict()
        self._lock = threading.Lock()
        self.sha256 = self._imatrix.sha256()

    @property
    def memory_bytes(self) -> int:
        """What the layers held take at most: shares are unpacked to eight times their bytes in the file."""
        layers = max(len(self._imatrix.layers), 1)
        return LAYERS_HELD * 8 * self._imatrix.path.stat().st_size // layers

    def guide(self, segment: str, index: int, spec: TensorSpec) -> Guide | None:
        """What guides matrix `spec` of record `index`; None for what is no INT4 matrix of an expert.

        Raises InputError where the imatrix lacks the expert, or has another shape.
        """
        if not _is_guided(segment, spec):
            return None
        layer = self._layer(int(segment.split(".")[1]))
        importance = layer.importance[spec.name]
        if index >= len(importance) or importance.shape[1] != spec.shape[1]:
            what = f"{segment}.{spec.name} of the imatrix is {list(importance.shape)}"
            expected = f"at least {index + 1} experts of {spec.shape[1]} inputs"
            raise InputError(what, where=self._imatrix.path, expected=expected)
        if not self.feeds(segment, spec):
            return Guide(importance[index], None)
        assert layer.shares is not None
        pad = spec.padded_shape[1] - spec.shape[1]
        return Guide(importance[index], functional.pad(layer.shares, (0, pad, 0, pad)) if pad else layer.shares)

    def feeds(self, segment: str, spec: TensorSpec) -> bool:
        """Whether errors of this matrix are fed back."""
        return self._feedback and spec.name == "w13" and _is_guided(segment, spec)

    def _layer(self, number: int) -> _Layer:
        with self._lock:
            if number not in self._layers:
                moments = self._imatrix.layer(number)
                importance = {"w13": moments.importance(moments.w13), "w2": moments.importance(moments.w2)}
                self._layers[number] = _Layer(importance, moments.dense_shares() if self._feedback else None)
                if len(self._layers) > LAYERS_HELD:
                    self._layers.popitem(last=False)
            return self._layers[number]


def _is_guided(segment: str, spec: TensorSpec) -> bool:
    return spec.codec == int4.NAME and segment.endswith(".experts")


def feed_back(
    spec: TensorSpec, parts: Sequence[Tensor], targets: Sequence[Target], rows: range, guide: Guide
) -> Tensor:
    """Choose the codes of `rows` anew for the scales that lie in the targets; float64 [rows, 4] squares."""
    assert guide.shares is not None
    n, k = spec.padded_shape
    scales = layouts.get(targets[0].layout).unpack_scales(targets[0].scales, k, spec.group_size).T
    here, codes = slice(rows.start, rows.stop), torch.empty(n, k, dtype=torch.uint8)
    importance = functional.pad(guide.importance, (0, k - spec.shape[1]))
    codes[here], squares = feedback.codes(padded(spec, parts, rows), guide.shares, scales[here], importance)
    pack(spec.codec, [codes], [scales], (n, k), spec.group_size, targets, rows=rows)
    return squares
