"""Choose a backend by the name of a device."""

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
    """The backend of `device` and notes on what was chosen. Raises UsageError for one this build lacks."""
    if device == "cuda":
        hint = "use --device cpu"
        raise UsageError(
            "this build has no CUDA engine", where="--device cuda", expected="auto, cpu or reference", hint=hint
        )
    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}", expected="1 or more")
    if device == "reference":
        if threads is not None:
            torch.set_num_threads(threads)
        return ReferenceBackend(), []
    backend = CpuBackend(threads)
    torch.set_num_threads(backend.pool.threads)
    notes = []
    if device == "auto" and torch.cuda.is_available():
        notes.append("a GPU is present but this build has no CUDA engine: running on the CPU")
    if backend.pool.isa == "scalar":
        why = f"{ISA_VARIABLE} asks for it" if os.environ.get(ISA_VARIABLE) else "this processor has no AVX2"
        notes.append(f"running scalar kernels, many times slower: {why}")
    return backend, notes
