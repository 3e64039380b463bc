"""Products with packed matrices on the GPU: of many rows, and of at most eight as fast as the weights come."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.library import INT, LONG, POINTER, TYPES, Function
from krasis.native.matrix import CMatrix

MOST_FEW = 8
"""Rows that the kernels for few rows take."""
MOST_PRODUCTS = 8

CODECS = {"int4": 0, "int8": 1, "mxfp4": 3}
Tile = Literal["32x256", "64x256", "128x256"]
TILES: dict[Tile, int] = {"32x256": 0, "64x256": 1, "128x256": 2}
"""Rows x columns of a block of the kernels for many rows."""

_MARLIN = 1
_PARTIALS, _COUNTERS, _MOST_BLOCKS = 1 << 20, 1 << 14, 1024
_EMULATED_BLOCKS = 8
_BITS = {"int4": 4, "int8": 8, "mxfp4": 4}
_SCALE_BYTES = {"int4": 2, "int8": 2, "mxfp4": 1}

_linear = Function("krasis_cuda_linear", POINTER, INT, POINTER, INT, LONG, INT, POINTER, INT, LONG, INT)
_linear_few = Function(
    "krasis_cuda_linear_few", POINTER, INT, POINTER, INT, LONG, INT, POINTER, INT, LONG, INT, INT, POINTER, POINTER, INT
)


@dataclass(frozen=True)
class Form:
    """What a matrix in the marlin layout looks like: `k` input and `n` output features with padding."""

    codec: str
    k: int
    n: int
    group_size: int

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise InputError(f"codec {self.codec!r} on the GPU", expected=f"one of {', '.join(CODECS)}")

    @property
    def code_bytes(self) -> int:
        return self.k * self.n * _BITS[self.codec] // 8

    @property
    def scale_bytes(self) -> int:
        return self.k // self.group_size * self.n * _SCALE_BYTES[self.codec]


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix to multiply by. `codes` and `scales` are its bytes, of any dtype, contiguous and aligned to 16.

    Its `n_out` logical columns are `parts` equal ones, each padded at its end; `bias` is float32 [n_out].
    """

    form: Form
    codes: Tensor
    scales: Tensor
    n_out: int
    parts: int = 1
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        found = self.codes.nbytes, self.scales.nbytes
        expected = self.form.code_bytes, self.form.scale_bytes
        if found != expected or not (self.codes.is_contiguous() and self.scales.is_contiguous()):
            raise InputError(f"codes and scales of {found} bytes", expected=f"{expected}, contiguous")
        if self.bias is not None:
            check(self.bias, "bias", torch.float32, (self.n_out,))


class _CProduct(ctypes.Structure):
    """`krasis_cuda_product`."""

    _fields_ = (
        ("matrix", CMatrix),
        ("bias", ctypes.c_void_p),
        ("n_out", ctypes.c_int32),
        ("parts", ctypes.c_int32),
    )


class Products:
    """Up to eight products of the same x, whose results lie side by side.

    `fixed`: nothing is ever written where the matrices lie, so that they may be read while what makes x still runs.
    """

    def __init__(self, products: Sequence[Product], *, fixed: bool = False) -> None:
        if not 1 <= len(products) <= MOST_PRODUCTS:
            raise InputError(f"{len(products)} products at once", expected=f"1 to {MOST_PRODUCTS}")
        self._kept, self.fixed = tuple(products), fixed
        self.device = products[0].codes.device
        self.n_out = sum(product.n_out for product in products)
        self.c_array = (_CProduct * len(products))(*map(_c_product, products))
        self.address = ctypes.addressof(self.c_array)

    def __len__(self) -> int:
        return len(self._kept)


def _c_product(product: Product) -> _CProduct:
    form, bias = product.form, product.bias
    codes, scales = product.codes.data_ptr(), product.scales.data_ptr()
    matrix = CMatrix(codes, scales, CODECS[form.codec], _MARLIN, form.k, form.n, form.group_size)
    return _CProduct(matrix, None if bias is None else bias.data_ptr(), product.n_out, product.parts)


class Scratch:
    """What kernels for few rows pass sums through. One at a time may use it: those of a stream, say. About 4 MiB.

    They split sums until there are `blocks` blocks, 1024 at most; if not told, one for each multiprocessor.
    """

    def __init__(self, device: torch.device | str, blocks: int | None = None) -> None:
        self.blocks = blocks or _multiprocessors(torch.device(device))
        self.partials = torch.empty(_PARTIALS, dtype=torch.float32, device=device)
        self.counters = torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


def tile_for(rows: float) -> Tile:
    """The tile that wastes least on a matrix, or on each of many, of `rows` rows on average."""
    # Of many rows too the middle one was the fastest, on an H100, for every shape of bench/cuda_gemm.py.
    return "32x256" if rows <= 32 else "64x256"


def _multiprocessors(device: torch.device) -> int:
    found = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _EMULATED_BLOCKS
    )
    return min(int(found), _MOST_BLOCKS)


def linear(products: Products, x: Tensor, out: Tensor, tile: Tile | None = None) -> Tensor:
    """x bfloat16 [m, k_in] -> out, float32 or bfloat16 [m, n_out of all products], which is returned.

    Rows may lie apart by a multiple of 8; k_in is one too. Weights are rounded to bfloat16 once, sums are float32.
    Raises InputError for other tensors, KrasisError where the library isn't built or refuses.
    """
    _linear(out.device, *_arguments(products, x, out), TILES[tile or tile_for(len(x))])
    return out


def linear_few(products: Products, x: Tensor, out: Tensor, scratch: Scratch, *, add: bool = False) -> Tensor:
    """The same for at most `MOST_FEW` rows, without rounding weights. `add`: to what `out` holds."""
    scratched = scratch.partials, scratch.counters, scratch.blocks
    _linear_few(out.device, *_arguments(products, x, out), add, products.fixed, *scratched)
    return out


def _arguments(products: Products, x: Tensor, out: Tensor) -> tuple[object, ...]:
    m, k_in = check_rows(x)
    if out.shape != (m, products.n_out) or out.dtype not in TYPES or out.stride(1) != 1:
        raise InputError(
            f"an output {tuple(out.shape)} of {out.dtype}", expected=f"({m}, {products.n_out}), float32 or bfloat16"
        )
    if not x.device == out.device == products.device:
        raise InputError(f"x on {x.device}, the result on {out.device}", expected=f"both on {products.device}")
    return products.address, len(products), x, m, x.stride(0), k_in, out, TYPES[out.dtype], out.stride(0)


def check_rows(x: Tensor) -> tuple[int, int]:
    """The shape of x. Raises InputError unless it is bfloat16 [m, k] with neighbours side by side."""
    if x.dim() != 2 or x.dtype != torch.bfloat16 or x.stride(1) != 1:
        raise InputError(
            f"x {tuple(x.shape)} of {x.dtype}", expected="bfloat16 [rows, features], features side by side"
        )
    return x.shape[0], x.shape[1]


def check(tensor: Tensor, what: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises InputError for another dtype or shape, or a tensor with gaps."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise InputError(f"{what} {tuple(tensor.shape)} of {tensor.dtype}", expected=f"{dtype} {shape}, contiguous")
