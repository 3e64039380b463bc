"""What the machine can do, measured: the rates that a benchmark's figures are held against."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor

from krasis.errors import FitError
from krasis.models.family import Linear
from krasis.native.cpu import Pool
from krasis.pack.anonymous import anonymous
from krasis.pack.manifest import Segment
from krasis.pack.reader import Pack
from krasis.pack.record import TensorSpec
from krasis.runtime.backend import Backend, packed_matrix
from krasis.runtime.machine import available_ram

READ_BYTES = 1 << 30
"""More than the caches of any machine that krasis is made for."""

PASSES, TOKENS = 3, 512
TRIAL_S = 0.1


def memory_to_read() -> Tensor:
    """Anonymous memory of `READ_BYTES` in huge pages, touched. Raises FitError where there is no room for it."""
    if (available := available_ram()) < READ_BYTES:
        what = f"measuring the rate of reading takes {READ_BYTES / 2**30:.2f} GiB"
        raise FitError(what, where="RAM", expected=f"{available / 2**30:.2f} GiB are available")
    return anonymous(READ_BYTES).fill_(1)


def read_rate(pool: Pool, memory: Tensor) -> float:
    """Bytes a second that all threads of the pool read together: the best of a few passes."""
    return memory.nbytes / min(seconds(partial(pool.read, memory)) for _ in range(PASSES))


def product_rate(pack: Pack, segments: list[Segment], backend: Backend) -> float:
    """Multiply-adds a second of the backend, pads included: the best over one matrix of each kind, many tokens."""
    best = 0.0
    for linear, tensor in _one_of_each(pack, segments, backend):
        x, until = torch.randn(TOKENS, tensor.shape[1]), time.perf_counter() + TRIAL_S
        while time.perf_counter() < until:
            best = max(best, TOKENS * prod(tensor.padded_shape) / seconds(partial(linear, x)))
    return best


def _one_of_each(pack: Pack, segments: list[Segment], backend: Backend) -> Iterator[tuple[Linear, TensorSpec]]:
    """A matrix of each codec, group size and layout among the layers' dense matrices and experts."""
    seen = set()
    for segment in segments:
        for tensor in segment.tensors:
            kind = (tensor.codec, tensor.group_size, segment.layout)
            if kind in seen or len(tensor.shape) != 2 or not segment.name.endswith((".dense", ".experts")):
                continue
            seen.add(kind)
            arrays = pack.arrays(segment.name, segment.layout)
            yield backend.linear(packed_matrix(tensor, segment.layout, arrays)), tensor


def seconds(action: Callable[[], object]) -> float:
    """What a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
