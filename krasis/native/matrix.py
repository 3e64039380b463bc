"""A packed matrix as the native kernels see it: pointers into tensors that lie wherever the pack is mapped."""

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from krasis.errors import InputError

_CODECS = {"int4": 0, "int8": 1, "bf16": 2, "mxfp4": 3}
_LAYOUTS = {"cpu": 0, "marlin": 1, "plain": 2}
_BITS = {"int4": 4, "int8": 8, "bf16": 16, "mxfp4": 4}
_CODE_DTYPES = (torch.uint8, torch.int32)
_MULTIPLE = 64
_GROUP_SIZES = {"int4": (32, 64, 128), "int8": (32, 64, 128), "mxfp4": (32,)}
_SCALE_DTYPES = {"int4": torch.bfloat16, "int8": torch.bfloat16, "mxfp4": torch.uint8}


class CMatrix(ctypes.Structure):
    """`krasis_matrix`."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("codec", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
    )


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix of `k` input and `n` output features, in its layout's order. Holds the tensors, copies nothing.

    - codec "int4", "int8" or "mxfp4", layout "cpu" or "marlin": `codes` are uint8 or int32, k*n*bits/8 bytes; `scales`
      are bfloat16, of "mxfp4" uint8, k/group_size*n of them. k and n are multiples of 64, group_size is 32, 64 or 128,
      of "mxfp4" 32, and divides k.
    - codec "bf16", layout "plain": `codes` are bfloat16, n*k of them, row by row; group_size is 0, `scales` None.

    Raises InputError where a name, shape, dtype or size is wrong, or a tensor isn't contiguous in main memory.
    """

    codec: str
    layout: str
    k: int
    n: int
    group_size: int
    codes: Tensor
    scales: Tensor | None = None
    c_struct: CMatrix = field(init=False, repr=False)
    address: int = field(init=False, repr=False)
    """Of a `krasis_matrix`, valid while this object lives."""

    def __post_init__(self) -> None:
        self._check()
        scales = None if self.scales is None else self.scales.data_ptr()
        codec, layout = _CODECS[self.codec], _LAYOUTS[self.layout]
        c_struct = CMatrix(self.codes.data_ptr(), scales, codec, layout, self.k, self.n, self.group_size)
        object.__setattr__(self, "c_struct", c_struct)
        object.__setattr__(self, "address", ctypes.addressof(c_struct))

    def _check(self) -> None:
        if self.codec not in _CODECS:
            raise InputError(f"unknown codec {self.codec!r}", expected=f"one of {', '.join(_CODECS)}")
        quantized = self.codec != "bf16"
        layouts = ("cpu", "marlin") if quantized else ("plain",)
        if self.layout not in layouts:
            raise InputError(f"{self.codec} in layout {self.layout!r}", expected=" or ".join(layouts))
        if not 1 <= self.k < 1 << 31 or not 1 <= self.n < 1 << 31:
            raise InputError(f"a matrix of K = {self.k}, N = {self.n}", expected="at least 1 x 1")
        if quantized:
            self._check_quantized()
        elif self.group_size or self.scales is not None:
            raise InputError("bf16 with a group size or scales", expected="0 and None")
        dtypes = _CODE_DTYPES if quantized else (torch.bfloat16,)
        _check_tensor("codes", self.codes, dtypes, self.k * self.n * _BITS[self.codec] // 8)

    def _check_quantized(self) -> None:
        if self.k % _MULTIPLE or self.n % _MULTIPLE:
            raise InputError(f"{self.codec} with K = {self.k}, N = {self.n}", expected=f"multiples of {_MULTIPLE}")
        sizes, dtype = _GROUP_SIZES[self.codec], _SCALE_DTYPES[self.codec]
        if self.group_size not in sizes or self.k % self.group_size:
            expected = f"whole groups of {' or '.join(map(str, sizes))}"
            raise InputError(f"{self.codec} with K = {self.k} in groups of {self.group_size}", expected=expected)
        if self.scales is None:
            raise InputError(f"{self.codec} without scales", expected=f"{dtype} scales")
        _check_tensor("scales", self.scales, (dtype,), self.k // self.group_size * self.n * dtype.itemsize)


def _check_tensor(what: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], size: int) -> None:
    if tensor.dtype not in dtypes:
        raise InputError(f"{what} are {tensor.dtype}", expected=" or ".join(map(str, dtypes)))
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise InputError(f"{what} are not contiguous in main memory", where=tensor.device)
    if tensor.nbytes != size:
        raise InputError(f"{what} have {tensor.nbytes} bytes", expected=f"{size}")
