"""Operations on packed matrices in GPU memory."""

import torch
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.library import cpu_library, cuda_library

_CODECS = {"int4": 0, "int8": 1}


def dequantize(codec: str, codes: Tensor, scales: Tensor, k: int, n: int, group_size: int) -> Tensor:
    """A matrix in the marlin layout -> bfloat16 [n, k], rounded to nearest even, on the current stream.

    `codes` int32 and `scales` bfloat16 are contiguous, on one GPU, as `krasis.layout.marlin` makes them. Raises
    InputError where they are not, KrasisError where the CUDA library isn't built or the GPU refuses.
    """
    _check(codec, codes, scales, k, n, group_size)
    out = torch.empty(n, k, dtype=torch.bfloat16, device=codes.device)
    with torch.cuda.device(codes.device):
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (codes.data_ptr(), scales.data_ptr(), _CODECS[codec], k, n, group_size, out.data_ptr(), stream)
        status = cuda_library().krasis_cuda_dequantize(*arguments)
    if status:
        raise KrasisError(cpu_library().krasis_strerror(status).decode(), where=f"{codec} K = {k}, N = {n}")
    return out


def _check(codec: str, codes: Tensor, scales: Tensor, k: int, n: int, group_size: int) -> None:
    if codec not in _CODECS or group_size not in (32, 64, 128):
        raise InputError(f"{codec} with groups of {group_size}", expected="int4 or int8 with groups of 32, 64 or 128")
    words = k * n * (4 if codec == "int4" else 8) // 32
    found = (codes.dtype, codes.numel(), scales.dtype, scales.numel() * group_size)
    if found != (torch.int32, words, torch.bfloat16, k * n):
        raise InputError(f"codes and scales do not match K = {k}, N = {n}", expected="what marlin.pack gives for them")
    if not codes.is_cuda or scales.device != codes.device or not (codes.is_contiguous() and scales.is_contiguous()):
        raise InputError(f"codes on {codes.device}, scales on {scales.device}", expected="contiguous, on one GPU")
