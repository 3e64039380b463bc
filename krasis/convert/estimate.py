"""What a conversion will take, guessed before it begins: made-up weights of real shapes are quantized for a moment."""

import hashlib
import math
import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import torch

from krasis import quant
from krasis.convert.calibration import Guide
from krasis.convert.encode import EXACT, encode_quantized
from krasis.convert.encodings.stored import Coded, Stored
from krasis.convert.pipeline import Conversion
from krasis.convert.records import PIECE
from krasis.native.quantize import Target
from krasis.pack.record import Section, TensorSpec, sections

BASE_BYTES = 340 << 20
"""What the libraries and the plan take."""

FLOAT_BYTES, KEPT_BYTES, DECODED_BYTES = 4, 16, 100
"""Peak memory a weight, measured: of a piece of floats, of an encoded matrix that is kept, of one decoded to floats."""

_SAMPLE = 1 << 22
_ROWS = 128
_SECONDS = 0.25
_BF16 = 2


class Work(NamedTuple):
    """How a matrix is made: its codec and group size, the codec its weights are `kept` in, none for floats, and
    whether errors are `fed` back.
    """

    codec: str
    group_size: int
    kept: str | None
    fed: bool


def estimate(conversion: Conversion, jobs: int) -> dict[str, Any]:
    """Seconds and bytes of memory that `jobs` threads take, and the rates this follows from, in bytes of bfloat16 that
    they quantize a second. Quantizing and hashing count, the disk does not.
    """
    weights: dict[Work, int] = {}
    samples: dict[Work, tuple[TensorSpec, str]] = {}
    for work, spec, segment, count in _matrices(conversion):
        weights[work] = weights.get(work, 0) + count
        samples[work] = max((spec, segment), samples.get(work, (spec, segment)), key=lambda sample: _weights(sample[0]))
    layouts, calibration = conversion.settings.layouts, conversion.calibration
    guides = {w: calibration.guide(segment, 0, spec) if calibration else None for w, (spec, segment) in samples.items()}
    rates = {work: rate(spec, layouts, jobs, work.kept, guides[work]) for work, (spec, _) in samples.items()}
    quantizing = sum(_BF16 * count / rates[work] for work, count in weights.items())
    hashing = (conversion.bytes + conversion.source_bytes) / hash_rate(jobs)
    held = calibration.memory_bytes if calibration else 0
    return {
        "jobs": jobs,
        "seconds": quantizing + hashing,
        "memory_bytes": BASE_BYTES + held + jobs * _working_set(conversion),
        "rates": [
            {"codec": work.codec, "group_size": work.group_size, "bytes_per_s": found} for work, found in rates.items()
        ],
    }


def rate(
    spec: TensorSpec, layouts: tuple[str, ...], jobs: int, kept: str | None = None, guide: Guide | None = None
) -> float:
    """Bytes of bfloat16 weights that `jobs` threads turn into matrices like `spec` a second, in whatever form."""
    sample = _cut(spec)
    rows, k = sample.shape
    sources = [_made_up(rows // sample.parts, k, kept) for _ in range(sample.parts)]

    def task() -> None:
        targets = [Target(layout, *map(_fresh, sections((sample,), layout))) for layout in layouts]
        encode_quantized(sample, sources, targets, range(sample.padded_shape[0]), guide)

    return _BF16 * rows * k * _rounds(task, jobs)


def hash_rate(jobs: int) -> float:
    """Bytes that `jobs` threads hash a second."""
    block = bytes(_SAMPLE)
    return len(block) * _rounds(lambda: hashlib.sha256(block).digest(), jobs)


def _matrices(conversion: Conversion) -> list[tuple[Work, TensorSpec, str, int]]:
    """Every quantized matrix, its segment, and its weights in all records, each once whatever the layouts."""
    calibration = conversion.calibration
    found = []
    for file in conversion.files:
        for group, (plan, *_) in zip(file.groups, file.segments, strict=True):
            for spec, weight in zip(plan.tensors, group.records[0], strict=True):
                if spec.quantized:
                    kept = conversion.checkpoint.kept_as(weight.sources[0])
                    fed = calibration is not None and calibration.feeds(plan.name, spec)
                    work = Work(spec.codec, spec.group_size, kept if (kept, spec.codec) in EXACT else None, fed)
                    found.append((work, spec, plan.name, plan.count * math.prod(spec.shape)))
    return found


def _working_set(conversion: Conversion) -> int:
    """Bytes of memory that a thread takes for the largest matrix."""
    most = 0
    for file in conversion.files:
        for group, (plan, *_) in zip(file.groups, file.segments, strict=True):
            for spec, weight in zip(plan.tensors, group.records[0], strict=True):
                (source, *_), size = weight.sources, math.prod(spec.shape)
                if conversion.checkpoint.tensors(source) == (source.name,):
                    need = FLOAT_BYTES * min(PIECE, size)
                else:
                    kept = (conversion.checkpoint.kept_as(source), spec.codec) in EXACT
                    need = (KEPT_BYTES if kept else DECODED_BYTES) * size
                most = max(most, need)
    return most


def _weights(spec: TensorSpec) -> int:
    return math.prod(spec.padded_shape)


def _made_up(n: int, k: int, kept: str | None) -> Stored:
    weight = torch.randn(n, k).bfloat16()
    if kept is None:
        return weight
    codec = quant.get(kept)
    quantized = codec.quantize(weight, max(codec.GROUP_SIZES))
    return Coded(kept, quantized.codes.T, quantized.scales.T)


def _cut(spec: TensorSpec) -> TensorSpec:
    """As many rows of it as make a sample."""
    k, padded_k = spec.shape[1], spec.padded_shape[1]
    rows = max(_SAMPLE // padded_k // spec.parts // _ROWS, 1) * _ROWS * spec.parts
    if rows >= spec.shape[0]:
        return spec
    return msgspec.structs.replace(spec, shape=(rows, k), padded_shape=(rows, padded_k))


def _fresh(section: Section) -> torch.Tensor:
    """Memory that no one has touched, as a file's is."""
    pages = mmap.mmap(-1, section.bytes)
    return torch.frombuffer(pages, dtype=section.dtype).view(section.shape)


def _rounds(task: Callable[[], object], jobs: int) -> float:
    """How often `jobs` threads together do a task in a second, while they are at it for a moment."""
    task()
    begin = time.perf_counter()

    def work() -> int:
        rounds = 0
        while not rounds or time.perf_counter() - begin < _SECONDS:
            task()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(jobs) as pool:
        done = sum(future.result() for future in [pool.submit(work) for _ in range(jobs)])
    return done / (time.perf_counter() - begin)
