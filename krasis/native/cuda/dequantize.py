"""The obvious reading of packed matrices on the GPU."""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.library import INT, POINTER, Function

CODECS = {"int4": 0, "int8": 1}

_dequantize = Function("krasis_cuda_dequantize", POINTER, POINTER, INT, INT, INT, INT, POINTER)


def dequantize(codec: str, codes: Tensor, scales: Tensor, k: int, n: int, group_size: int) -> Tensor:
    """A matrix in the marlin layout -> bfloat16 [n, k], rounded to nearest even.

    `codes` int32 and `scales` bfloat16 are contiguous, on one device, as `krasis.layout.marlin` makes them. Raises
    InputError where they are not, KrasisError where the library isn't built or the device refuses.
    """
    _check(codec, codes, scales, k, n, group_size)
    out = torch.empty(n, k, dtype=torch.bfloat16, device=codes.device)
    _dequantize(codes.device, codes, scales, CODECS[codec], k, n, group_size, out)
    return out


def _check(codec: str, codes: Tensor, scales: Tensor, k: int, n: int, group_size: int) -> None:
    if codec not in CODECS or group_size not in (32, 64, 128):
        raise InputError(f"{codec} with groups of {group_size}", expected="int4 or int8 with groups of 32, 64 or 128")
    words = k * n * (4 if codec == "int4" else 8) // 32
    found = (codes.dtype, codes.numel(), scales.dtype, scales.numel() * group_size)
    if found != (torch.int32, words, torch.bfloat16, k * n):
        raise InputError(f"codes and scales do not match K = {k}, N = {n}", expected="what marlin.pack gives for them")
    if scales.device != codes.device or not (codes.is_contiguous() and scales.is_contiguous()):
        raise InputError(f"codes on {codes.device}, scales on {scales.device}", expected="contiguous, on one device")
