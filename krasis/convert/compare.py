"""Compare a pack with the checkpoint it was made from: every matrix dequantized, every error found again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from krasis import layout as layouts
from krasis import models, quant
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.encode import values
from krasis.convert.parts import padded
from krasis.convert.pipeline import Conversion
from krasis.convert.store import Store
from krasis.convert.workers import Workers
from krasis.errors import InputError
from krasis.models.conform import check_pack, read_spec
from krasis.models.weight import Weight
from krasis.pack.hashing import Span, digests
from krasis.pack.progress import Progress
from krasis.pack.reader import Pack
from krasis.pack.record import TensorSpec
from krasis.pack.summary import stored_bytes
from krasis.quant import int4
from krasis.quant.codec import Quantized, squares

TOLERANCE = 1e-6
"""How far a relative error may be from the one the manifest states, as a share of it.

The quantizer sums the squares of a group in float32: some 64 roundings of 2^-24 each, mostly of different signs.
"""

INT4_TOLERANCE = 2e-4
"""How far one of INT4 may be. Its search works on weights rounded to 1/11,915 of their group's peak, which is 1e-4 of
their root mean square: so much may be stated where there is no error at all.
"""

PIECE = 1 << 22
"""Weights compared at once, about."""

_ROWS = 128
"""What every layout can be cut into."""

Sums = tuple[float, float]
"""Squares of errors and of weights; of an unquantized tensor the values that differ and how many there are."""


@dataclass
class Comparison:
    """What was found: `tensors` compared, each layout counted; the relative RMS error of every matrix; what is `wrong`
    with which tensor or field of the model's spec; the source files that are not those the pack was made from.
    """

    tensors: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The matrices furthest from the checkpoint."""
        return sorted(self.errors.items(), key=lambda entry: -entry[1])[:count]


@dataclass(frozen=True)
class _Stored:
    """A tensor of a record as one layout has it."""

    segment: str
    layout: str
    index: int
    spec: TensorSpec
    weight: Weight

    @property
    def name(self) -> str:
        return f"{self.segment}[{self.index}].{self.spec.name}"

    @property
    def pieces(self) -> list[slice]:
        rows, *rest = self.spec.padded_shape
        step = max(PIECE // math.prod(rest) // _ROWS, 1) * _ROWS
        return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def compare(pack: Pack, source: Store | Path, progress: Progress, jobs: int) -> Comparison:
    """Compare on `jobs` threads. Raises InputError where the checkpoint is none that could have made the pack."""
    conversion = Conversion(source, pack.manifest.settings)
    checkpoint, spec = conversion.checkpoint, read_spec(pack)
    family = models.of(spec)
    if not isinstance(conversion.spec, family.Spec):
        found = f"the checkpoint is of family {checkpoint.config['model_type']!r}"
        raise InputError(found, where=checkpoint.where, expected=str(pack.manifest.model["model_type"]))
    check_pack(pack, family, conversion.spec)
    result = Comparison()
    for name in spec.__struct_fields__:
        ours, theirs = getattr(spec, name), getattr(conversion.spec, name)
        if ours != theirs:
            result.wrong[f"model.{name}"] = f"is {ours}, of the checkpoint {theirs}"
    result.changed = _changed_files(checkpoint, pack, progress, jobs)
    _compare_tensors(pack, conversion, result, progress, jobs)
    return result


def _changed_files(checkpoint: Checkpoint, pack: Pack, progress: Progress, jobs: int) -> list[str]:
    store, shards = checkpoint.store, checkpoint.shards
    if missing := sum(map(store.missing, shards)):
        progress.start("fetching the checkpoint", missing)
    spans = [Span(store.fetch(shard, progress.advance), 0, store.size(shard)) for shard in shards]
    progress.start("hashing the checkpoint", sum(span.bytes for span in spans))
    have = {}
    for shard, span, digest in zip(shards, spans, digests(spans, jobs), strict=True):
        have[shard] = span.bytes, digest
        progress.advance(span.bytes)
    # What came from a hub is listed with its address.
    stated = {file.name.rsplit("/", 1)[-1]: (file.bytes, file.sha256) for file in pack.manifest.source}
    return sorted(name for name in have.keys() | stated.keys() if have.get(name) != stated.get(name))


def _compare_tensors(pack: Pack, conversion: Conversion, result: Comparison, progress: Progress, jobs: int) -> None:
    segments = [segment for _, segment in pack.manifest.segments()]
    progress.start("comparing", sum(s.count * stored_bytes(spec, s.layout) for s in segments for spec in s.tensors))
    with Workers[Sums](jobs) as workers:
        for stored in _tensors(pack, conversion):
            sums: list[Sums] = []
            pieces = stored.pieces
            done = partial(_gather, pack, stored, result, progress, sums, len(pieces))
            for rows in pieces:
                workers.submit(partial(_compare_piece, pack, conversion.checkpoint, stored, rows), done)
        workers.drain()


def _tensors(pack: Pack, conversion: Conversion) -> Iterator[_Stored]:
    for file in conversion.files:
        for group in file.groups:
            for layout in pack.layouts_of[group.name]:
                specs = pack.segment(group.name, layout).tensors
                for index, weights in enumerate(group.records):
                    for spec, weight in zip(specs, weights, strict=True):
                        yield _Stored(group.name, layout, index, spec, weight)


def _compare_piece(pack: Pack, checkpoint: Checkpoint, stored: _Stored, rows: slice) -> Sums:
    spec, arrays = stored.spec, pack.arrays(stored.segment, stored.layout, stored.index)
    sources = [values(checkpoint.load(source)) for source in stored.weight.sources]
    exact = padded(spec, sources, range(rows.start, rows.stop))
    codec = quant.get(spec.codec)
    if not spec.quantized:
        found = arrays[spec.name, "values"][rows]
        return float((found != codec.encode(exact)).sum()), float(found.numel())
    order, k = layouts.get(stored.layout), spec.padded_shape[1]
    codes, scales = order.columns(arrays[spec.name, "codes"], arrays[spec.name, "scales"], rows)
    quantized = Quantized(order.unpack(codes, codec.BITS), order.unpack_scales(scales, k, spec.group_size))
    return squares(exact, codec.dequantize(quantized))


def _gather(
    pack: Pack, stored: _Stored, result: Comparison, progress: Progress, sums: list[Sums], count: int, found: Sums
) -> None:
    """Called with what each of `count` pieces gives; the last one judges the tensor."""
    sums.append(found)
    if len(sums) < count:
        return
    progress.advance(stored_bytes(stored.spec, stored.layout))
    result.tensors += 1
    error, energy = (math.fsum(column) for column in zip(*sums, strict=True))
    if not stored.spec.quantized:
        if error:
            result.wrong[f"{stored.name}@{stored.layout}"] = f"{error:.0f} of {energy:.0f} values differ"
        return
    relative = math.sqrt(error / energy) if energy else math.sqrt(error)
    stated = pack.manifest.errors[f"{stored.segment}.{stored.spec.name}"][stored.index]
    # Written so that a NaN is wrong too.
    if abs(relative - stated) <= allowed(stored.spec.codec, stated):
        result.errors[stored.name] = relative
    else:
        result.wrong[f"{stored.name}@{stored.layout}"] = f"its error is {relative:.6g}, stated as {stated:.6g}"


def allowed(codec: str, stated: float) -> float:
    """How far a relative error may be from the one stated; not at all where none is."""
    return INT4_TOLERANCE if codec == int4.NAME and stated else TOLERANCE * stated
