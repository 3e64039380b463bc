"""INT4 codes by error feedback: `krasis.quant.feedback.quantize`, bit for bit, in compiled code."""

import os

import torch
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.cpu import ISA_VARIABLE, isa_number
from krasis.native.library import ERROR_ISA, cpu_library

_MULTIPLE = 16


def codes(
    weight: Tensor, shares: Tensor, scales: Tensor, importance: Tensor, isa: str | None = None
) -> tuple[Tensor, Tensor]:
    """uint8 codes [N, K] of float32 weights [N, K], with float32 shares [K, K] and bfloat16 scales [N, K/g].

    Also float64 [N, 4], of each row the sums of squared errors and weights, and both by `importance` float32 [K].
    N and K are multiples of 16. Runs on the calling thread, without Python's lock. `isa` as for `Pool`. Raises
    InputError for other shapes and dtypes, KrasisError for an instruction set this machine lacks.
    """
    given = tuple(tensor.contiguous() for tensor in (weight, shares, scales, importance))
    found = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in given)
    dtypes = tuple(tensor.dtype for tensor in given)
    if dtypes != (torch.float32, torch.float32, torch.bfloat16, torch.float32):
        raise InputError(f"weight, shares, scales, importance of {found}", expected="float32, but bfloat16 scales")
    n, k = weight.shape
    groups = scales.shape[-1]
    whole = groups and not k % groups and not n % _MULTIPLE and not k % _MULTIPLE
    if not whole or (shares.shape, scales.shape, importance.shape) != ((k, k), (n, groups), (k,)):
        what = f"weight, shares, scales, importance of {found}"
        raise InputError(what, expected=f"[N, K], [K, K], [N, K/g] and [K], N and K multiples of {_MULTIPLE}")
    result, errors = torch.empty(n, k, dtype=torch.uint8), torch.empty(n, 4, dtype=torch.float64)
    number = isa_number(isa or os.environ.get(ISA_VARIABLE) or None)
    addresses = [tensor.data_ptr() for tensor in given]
    library = cpu_library()
    status = library.krasis_int4_feedback(number, *addresses, k, n, k // groups, result.data_ptr(), errors.data_ptr())
    if status:
        kind = KrasisError if status == ERROR_ISA else InputError
        raise kind(library.krasis_strerror(status).decode(), where=found)
    return result, errors
