"""Padding, quantizing and laying out a matrix in one pass, natively. The reference is in `krasis.quant`.

Calls run on the calling thread without Python's lock, so that Python threads work side by side, on other matrices or
other rows of one. Codes, scales and errors are the same bits on every instruction set and however rows are split.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.errors import InputError, KrasisError
from krasis.native.cpu import ISA_VARIABLE, isa_number
from krasis.native.library import ERROR_ISA, cpu_library
from krasis.native.matrix import Matrix

BLOCK = 64
"""Rows of a padded matrix that are quantized at once: the width of Marlin's tiles."""

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BAD_VALUE = 12


class _CPart(ctypes.Structure):
    _fields_ = (("values", ctypes.c_void_p), ("rows", ctypes.c_int64), ("stride", ctypes.c_int64))


class _CWeights(ctypes.Structure):
    _fields_ = (
        ("parts", ctypes.POINTER(_CPart)),
        ("count", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("columns", ctypes.c_int64),
        ("importance", ctypes.c_void_p),
    )


class _CCodes(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes_stride", ctypes.c_int64),
        ("scales_stride", ctypes.c_int64),
    )


class _CTarget(ctypes.Structure):
    _fields_ = (("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("layout", ctypes.c_int32))


class _CPacking(ctypes.Structure):
    _fields_ = (
        ("codec", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("targets", ctypes.POINTER(_CTarget)),
        ("target_count", ctypes.c_int32),
    )


@dataclass(frozen=True, eq=False)
class Target:
    """Where a whole padded matrix goes: contiguous, as `pack` and `pack_scales` of the layout give it.

    Both tensors are written in place, and may lie in a mapped file.
    """

    layout: str
    codes: Tensor
    scales: Tensor


def quantize(
    codec: str,
    parts: Sequence[Tensor],
    padded: tuple[int, int],
    group_size: int,
    targets: Sequence[Target],
    *,
    rows: range | None = None,
    importance: Tensor | None = None,
    isa: str | None = None,
) -> Tensor:
    """Pad, quantize and lay out float parts [rows, K] of one matrix into every target.

    Part p starts at row p * N / parts of the `padded` (N, K) matrix; whatever no part covers becomes zero codes and
    scales. `rows`: only these padded rows, from a multiple of BLOCK to a multiple of BLOCK. `importance`: float32 [K],
    not negative, the weight of every column's squared error.

    Returns float64 [blocks, 2], for each BLOCK of rows the sum of squared errors and of squared weights; with
    importance [blocks, 4], the same two weighted by it after them. Summed over blocks in order they are the same
    however rows were split; sqrt of error over energy is the relative RMS error.

    Raises InputError for weights that are NaN, infinite or beyond 2^127, and for shapes or dtypes that do not belong
    together; KrasisError for an instruction set this machine lacks.
    """
    if not parts or len({(part.dtype, part.shape[1:]) for part in parts}) > 1 or parts[0].ndim != 2:
        raise InputError(f"parts of {_described(parts)}", expected="float matrices of one dtype and width")
    if not parts[0].is_floating_point():
        raise InputError(f"parts of {_described(parts)}", expected="a float dtype")
    parts = [_readable(part) for part in parts]
    columns = parts[0].shape[1]
    if importance is not None:
        importance = _checked_importance(importance, columns)
    packing = _packing(codec, padded, group_size, targets)
    blocks = _blocks(rows, padded[0])
    errors = torch.empty(len(blocks), 2 if importance is None else 4, dtype=torch.float64)
    c_parts = (_CPart * len(parts))(*(_CPart(part.data_ptr(), len(part), part.stride(0)) for part in parts))
    weights = _CWeights(c_parts, len(parts), _TYPES[parts[0].dtype], columns, _address(importance))
    arguments = (_isa(isa), ctypes.addressof(weights), ctypes.addressof(packing), blocks.start, blocks.stop)
    status = cpu_library().krasis_quantize(*arguments, errors.data_ptr())
    if status == _BAD_VALUE:
        raise _unusable(parts)
    _check_status(status, codec, parts, padded, group_size)
    return errors


def pack(
    codec: str,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    padded: tuple[int, int],
    group_size: int,
    targets: Sequence[Target],
    *,
    rows: range | None = None,
    isa: str | None = None,
) -> None:
    """Pad and lay out parts that keep the codes they have: uint8 [rows, K] and scales [rows, ceil(K / group_size)].

    Scales are bfloat16, of "mxfp4" uint8. Rows may be any distance apart. Codes must be valid: they are not looked at.
    Everything else is as in `quantize`.
    """
    if not codes or len(codes) != len(scales):
        raise InputError(f"{len(codes)} parts of codes, {len(scales)} of scales", expected="as many of both")
    scale_dtype = torch.uint8 if codec == "mxfp4" else torch.bfloat16
    pairs = [_matching(*pair, scale_dtype, group_size) for pair in zip(codes, scales, strict=True)]
    packing = _packing(codec, padded, group_size, targets)
    blocks = _blocks(rows, padded[0])
    c_parts = (_CCodes * len(pairs))(
        *(_CCodes(c.data_ptr(), s.data_ptr(), *c.shape, c.stride(0), s.stride(0)) for c, s in pairs)
    )
    arguments = (ctypes.addressof(c_parts), len(pairs), ctypes.addressof(packing), blocks.start, blocks.stop)
    _check_status(cpu_library().krasis_pack(_isa(isa), *arguments), codec, codes, padded, group_size)


def _packing(codec: str, padded: tuple[int, int], group_size: int, targets: Sequence[Target]) -> _CPacking:
    n, k = padded
    # Making a Matrix checks names, shapes, dtypes and sizes.
    matrices = [Matrix(codec, target.layout, k, n, group_size, target.codes, target.scales) for target in targets]
    if not matrices:
        raise InputError("no targets", expected="at least one layout")
    structs = [matrix.c_struct for matrix in matrices]
    c_targets = (_CTarget * len(structs))(*(_CTarget(s.codes, s.scales, s.layout) for s in structs))
    return _CPacking(structs[0].codec, k, n, group_size, c_targets, len(structs))


def _blocks(rows: range | None, n: int) -> range:
    rows = range(n) if rows is None else rows
    if rows.step != 1 or rows.start % BLOCK or rows.stop % BLOCK or not 0 <= rows.start <= rows.stop <= n:
        raise InputError(f"{rows} of {n} rows", expected=f"multiples of {BLOCK} within them")
    return range(rows.start // BLOCK, rows.stop // BLOCK)


def _readable(part: Tensor) -> Tensor:
    part = part if part.dtype in _TYPES else part.float()
    return part if part.stride(1) == 1 or part.shape[1] == 1 else part.contiguous()


def _checked_importance(importance: Tensor, columns: int) -> Tensor:
    if importance.dtype != torch.float32 or importance.shape != (columns,):
        found = f"importance is {importance.dtype} {tuple(importance.shape)}"
        raise InputError(found, expected=f"float32 ({columns},)")
    if not bool(((importance >= 0) & importance.isfinite()).all()):
        raise InputError("importance has values that are negative or not finite", expected="0 and above")
    return importance.contiguous()


def _matching(codes: Tensor, scales: Tensor, scale_dtype: torch.dtype, group_size: int) -> tuple[Tensor, Tensor]:
    expected = f"codes uint8 [rows, K], scales {scale_dtype} [rows, ceil(K / {group_size})]"
    found = f"codes are {codes.dtype} {tuple(codes.shape)}, scales {scales.dtype} {tuple(scales.shape)}"
    if codes.dtype != torch.uint8 or scales.dtype != scale_dtype or codes.ndim != 2 or group_size < 1:
        raise InputError(found, expected=expected)
    if scales.shape != (len(codes), -(-codes.shape[1] // group_size)):
        raise InputError(found, expected=expected)
    return _unit_columns(codes), _unit_columns(scales)


def _unit_columns(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _isa(isa: str | None) -> int:
    return isa_number(isa or os.environ.get(ISA_VARIABLE) or None)


def _unusable(parts: Sequence[Tensor]) -> InputError:
    count = sum(int((~(part.float().abs() < 2.0**127)).sum()) for part in parts)
    total = sum(part.numel() for part in parts)
    return InputError(f"{count} of {total} weights are NaN, infinite or beyond 2^127", expected="finite weights")


def _check_status(status: int, codec: str, parts: Sequence[Tensor], padded: tuple[int, int], group_size: int) -> None:
    if status:
        where = f"{codec} in groups of {group_size}, {_described(parts)} into N = {padded[0]}, K = {padded[1]}"
        kind = KrasisError if status == ERROR_ISA else InputError
        raise kind(cpu_library().krasis_strerror(status).decode(), where=where)


def _described(parts: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in parts) or "nothing"
