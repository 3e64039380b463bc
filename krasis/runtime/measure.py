"""Measure the rates of this machine: its processor always, one GPU where torch finds one."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import msgspec
import torch
from torch import Tensor

from krasis.native.cpu import Pool
from krasis.pack.record import TensorSpec, sections
from krasis.runtime.backend import packed_matrix
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.limits import PASSES, TOKENS, memory_to_read, read_rate, seconds
from krasis.runtime.rates import REFERENCE, Rates, machine

MATRIX = TensorSpec("w", "int4", (4096, 2048), (4096, 2048), 128)
"""About what an expert's is."""

COPY_BYTES, DEVICE_BYTES, SQUARE, LAUNCHES = 256 << 20, 1 << 30, 8192, 1000


def measure() -> Rates:
    """Takes a few seconds. Raises FitError where there is no room for the memory that is read."""
    backend = CpuBackend()
    memory = memory_to_read()
    found = {"host_read": read_rate(backend.pool, memory), "host_products": _host_products(backend)}
    if torch.cuda.is_available():
        found |= _device(backend.pool, memory, found["host_read"])
    rates = [name for name, kind in Rates.__annotations__.items() if kind is float]
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    return msgspec.structs.replace(
        REFERENCE,
        machine=machine(),
        source=f"measured on {now}",
        assumed=tuple(name for name in rates if name not in found),
        **found,
    )


def _host_products(backend: CpuBackend) -> float:
    arrays: dict[tuple[str, str], Tensor] = {
        (s.tensor, s.part): torch.zeros(s.shape, dtype=s.dtype) for s in sections((MATRIX,), "marlin")
    }
    linear = backend.linear(packed_matrix(MATRIX, "marlin", arrays))
    x = torch.ones(TOKENS, MATRIX.shape[1])
    linear(x)
    return TOKENS * MATRIX.shape[0] * MATRIX.shape[1] / _best(partial(linear, x))


def _device(pool: Pool, memory: Tensor, host_read: float) -> dict[str, float]:
    pinned = torch.zeros(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(pinned, device="cuda")
    copy = partial(target.copy_, pinned, non_blocking=True)
    pcie = COPY_BYTES / _best(_synchronized(copy))
    source = torch.zeros(DEVICE_BYTES, dtype=torch.uint8, device="cuda")
    sink = torch.empty_like(source)
    square = torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16, device="cuda")
    kernel, graph = partial(torch.zeros(1, device="cuda").add_, 1), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _repeat(kernel)
    return {
        "pcie": pcie,
        "together": _together(pool, memory, copy, pcie, host_read),
        "device_read": 2 * DEVICE_BYTES / _best(_synchronized(partial(sink.copy_, source))),
        "device_products": SQUARE**3 / _best(_synchronized(partial(torch.matmul, square, square))),
        "launch_s": _best(_synchronized(partial(_repeat, kernel))) / LAUNCHES,
        "node_s": _best(_synchronized(graph.replay)) / LAUNCHES,
    }


def _together(pool: Pool, memory: Tensor, copy: Callable[[], object], pcie: float, host_read: float) -> float:
    """Bytes a second that copies to the device and reads by the processor reach while both are at it."""
    copies = max(2, round(memory.nbytes / host_read * pcie / COPY_BYTES))

    def both() -> None:
        for _ in range(copies):
            copy()
        pool.read(memory)
        torch.cuda.synchronize()

    return (memory.nbytes + copies * COPY_BYTES) / _best(both)


def _repeat(action: Callable[[], object]) -> None:
    for _ in range(LAUNCHES):
        action()


def _synchronized(action: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        action()
        torch.cuda.synchronize()

    return run


def _best(action: Callable[[], object]) -> float:
    """Seconds of the fastest of a few passes, after one that counts for nothing."""
    action()
    return min(seconds(action) for _ in range(PASSES))
