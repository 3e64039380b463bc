"""One record of the pack: cut into pieces of work for any thread, quantized into the mapped file, sealed at the end."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.convert.calibration import Calibration, Guide
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.encode import encode_plain, encode_quantized
from krasis.errors import InputError
from krasis.models.weight import Weight
from krasis.native.quantize import BLOCK, Target
from krasis.pack.file_writer import FileWriter, SegmentPlan
from krasis.pack.record import TensorSpec

PIECE = 1 << 25
"""Weights of a piece of work, about: an expert is one piece, a vocabulary's matrix many."""


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, by its index in the record: padded ones of a quantized matrix, in whole blocks."""

    tensor: int
    rows: range


class Record:
    """`weights` of the checkpoint on their way into record `index` of the segments `plans`, one a layout."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        out: FileWriter,
        plans: list[SegmentPlan],
        index: int,
        weights: tuple[Weight, ...],
        calibration: Calibration | None = None,
    ) -> None:
        self._checkpoint, self._out, self._plans, self._calibration = checkpoint, out, plans, calibration
        self._index, self._weights = index, weights
        self._places: list[dict[tuple[str, str], Tensor]] = []
        self._squares: dict[Piece, Tensor] = {}
        self._lock = threading.Lock()
        pieces = [piece for tensor in range(len(weights)) for piece in self._pieces(tensor)]
        self._left = len(pieces)
        self.tasks = self._grouped(pieces)

    @property
    def bytes(self) -> int:
        return sum(plan.record_bytes for plan in self._plans)

    def run(self, pieces: list[Piece]) -> "Record | None":
        """Encode some pieces. The record itself where they were the last, and it is sealed."""
        places = self._open()
        for piece in pieces:
            self._encode(piece, places)
        with self._lock:
            self._left -= len(pieces)
            last = not self._left
        if not last:
            return None
        self._seal()
        return self

    def _pieces(self, tensor: int) -> Iterator[Piece]:
        spec = self._plans[0].tensors[tensor]
        rows = spec.padded_shape[0]
        width = math.prod(spec.padded_shape[1:])
        step = max(PIECE // width // BLOCK, 1) * BLOCK
        for first in range(0, rows, step):
            yield Piece(tensor, range(first, min(first + step, rows)))

    def _grouped(self, pieces: list[Piece]) -> list[list[Piece]]:
        """Small pieces together, up to the size of one."""
        groups: list[list[Piece]] = [[]]
        size = 0
        for piece in pieces:
            weights = len(piece.rows) * math.prod(self._plans[0].tensors[piece.tensor].padded_shape[1:])
            if groups[-1] and size + weights > PIECE:
                groups.append([])
                size = 0
            groups[-1].append(piece)
            size += weights
        return groups

    def _open(self) -> list[dict[tuple[str, str], Tensor]]:
        with self._lock:
            if not self._places:
                self._places = [self._out.arrays(plan.name, plan.layout, self._index) for plan in self._plans]
            return self._places

    def _encode(self, piece: Piece, places: list[dict[tuple[str, str], Tensor]]) -> None:
        spec, weight = self._plans[0].tensors[piece.tensor], self._weights[piece.tensor]
        sources = [self._checkpoint.load(source) for source in weight.sources]
        try:
            if spec.quantized:
                targets = [
                    Target(plan.layout, place[spec.name, "codes"], place[spec.name, "scales"])
                    for plan, place in zip(self._plans, places, strict=True)
                ]
                squares = encode_quantized(spec, sources, targets, piece.rows, self._guide(spec))
                with self._lock:
                    self._squares[piece] = squares
            else:
                for place in places:
                    encode_plain(spec, sources, place[spec.name, "values"], piece.rows)
        except InputError as cause:
            names = " or ".join(dict.fromkeys(source.name for source in weight.sources))
            raise InputError(f"{names}: {cause}", where=self._checkpoint.where) from cause

    def _guide(self, spec: TensorSpec) -> Guide | None:
        if self._calibration is None:
            return None
        return self._calibration.guide(self._plans[0].name, self._index, spec)

    def _seal(self) -> None:
        self._places = []
        for plan in self._plans:
            self._out.seal(plan.name, plan.layout, self._index)
        for tensor, spec in enumerate(self._plans[0].tensors):
            if spec.quantized:
                squares = [found for piece, found in self._squares.items() if piece.tensor == tensor]
                plain = relative_rms(torch.cat([found[:, :2] for found in squares]))
                guided = all(found.shape[1] == 4 for found in squares)
                weighted = relative_rms(torch.cat([found[:, 2:] for found in squares])) if guided else None
                self._out.put_error(self._plans[0].name, spec.name, self._index, plain, weighted)


def relative_rms(squares: Tensor) -> float:
    """||w - w'|| / ||w|| from float64 [blocks, 2], the squares of errors and weights. Their order does not matter."""
    error, energy = (math.fsum(column) for column in squares.T.tolist())
    return math.sqrt(error / energy) if energy else 0.0
