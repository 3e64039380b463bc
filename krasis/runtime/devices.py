"""The backends that need no GPU, by the names of devices."""

import os
from typing import Literal

import torch

from krasis.errors import UsageError
from krasis.native.cpu import ISA_VARIABLE
from krasis.runtime.backend import Backend
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.reference import ReferenceBackend

Device = Literal["auto", "cpu", "cuda", "reference"]


def open_backend(device: Device, threads: int | None) -> tuple[Backend, list[str]]:
    """The CPU's backend, or the reference where `device` says so, and notes on what was chosen."""
    check_threads(threads)
    if device == "reference":
        if threads is not None:
            torch.set_num_threads(threads)
        return ReferenceBackend(), []
    backend = CpuBackend(threads)
    torch.set_num_threads(backend.pool.threads)
    notes = []
    if backend.pool.isa == "scalar":
        why = f"{ISA_VARIABLE} asks for it" if os.environ.get(ISA_VARIABLE) else "this processor has no AVX2"
        notes.append(f"running scalar kernels, many times slower: {why}")
    return backend, notes


def check_threads(threads: int | None) -> None:
    """Raises UsageError for an impossible number."""
    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}", expected="1 or more")
