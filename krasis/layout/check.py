"""What every layout demands of codes, scales, bits and group sizes. All raise InputError."""

import torch
from torch import Tensor

from krasis.errors import InputError

GROUP_SIZES = (32, 64, 128)
ONE_GROUP = -1
SCALE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.uint8)


def check_bits(bits: int) -> None:
    if bits not in (4, 8):
        raise InputError(f"{bits} bits a code", expected="4 or 8")


def check_matrix(matrix: Tensor, what: str, *dtypes: torch.dtype, ndim: int = 2) -> None:
    """`matrix` has one of the dtypes and `ndim` dimensions."""
    if matrix.dtype not in dtypes:
        raise InputError(f"{what} are {matrix.dtype}", expected=" or ".join(map(str, dtypes)))
    if matrix.ndim != ndim:
        raise InputError(f"{what} have shape {tuple(matrix.shape)}", expected=f"{ndim} dimensions")


def check_codes(codes: Tensor, bits: int) -> None:
    """`codes` is uint8 [K, N] and every code fits in `bits`."""
    check_bits(bits)
    check_matrix(codes, "codes", torch.uint8)
    if bits == 4 and codes.numel() and (top := int(codes.max())) > 15:
        raise InputError(f"a code is {top}", expected="at most 15 with 4 bits")


def check_shape_is(found: Tensor, expected: tuple[int, ...], what: str) -> None:
    if tuple(found.shape) != expected:
        raise InputError(f"{what} have shape {tuple(found.shape)}", expected=str(expected))


def group_count(k: int, group_size: int) -> int:
    """The number of groups along K. A `group_size` of -1 or K is one group."""
    if group_size in (ONE_GROUP, k):
        return 1
    if group_size not in GROUP_SIZES:
        raise InputError(f"group size {group_size}", expected="32, 64, 128, or -1 for one group")
    if k % group_size:
        raise InputError(f"K = {k} with groups of {group_size}", expected="whole groups")
    return k // group_size
