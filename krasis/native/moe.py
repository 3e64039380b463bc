"""The routed experts of a layer, run by native kernels in one wake of the pool."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cpu import Pool
from krasis.native.library import cpu_library
from krasis.native.matrix import CMatrix, Matrix

ActivationName = Literal["swiglu", "clamped_swiglu"]

_ACTIVATIONS = {"swiglu": 0, "clamped_swiglu": 1}
_BIAS_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class CExperts(ctypes.Structure):
    """`krasis_experts`."""

    _fields_ = (
        ("w13", CMatrix),
        ("w2", CMatrix),
        ("b13", ctypes.c_void_p),
        ("b2", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("hidden", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("limit", ctypes.c_float),
    )


@dataclass(frozen=True)
class ExpertShape:
    """`count` experts on `hidden` features, `size` of their own, whose records lie `stride` bytes apart."""

    count: int
    stride: int
    hidden: int
    size: int


@dataclass(frozen=True)
class NativeActivation:
    """A `krasis_activation`; `alpha` and `limit` are those of clamped SwiGLU."""

    name: ActivationName = "swiglu"
    alpha: float = 0.0
    limit: float = 0.0


class NativeExperts:
    """Implements `krasis.models.family.Experts`.

    `w13`, `w2` and the biases `b13` and `b2`, float32 or bfloat16 as padded as the columns of their matrices, are those
    of the first expert. The whole range of records is read: they must lie in one run of memory that outlives this.
    """

    def __init__(
        self,
        pool: Pool,
        w13: Matrix,
        w2: Matrix,
        shape: ExpertShape,
        activation: NativeActivation,
        b13: Tensor | None = None,
        b2: Tensor | None = None,
    ) -> None:
        self._pool, self._shape = pool, shape
        self._kept = (w13, w2, b13, b2)
        dtypes = {b.dtype for b in (b13, b2) if b is not None} or {torch.float32}
        if len(dtypes) != 1 or not dtypes <= set(_BIAS_TYPES):
            raise InputError(f"biases are {', '.join(map(str, dtypes))}", expected="all float32 or all bfloat16")
        for bias, matrix in ((b13, w13), (b2, w2)):
            if bias is not None and bias.shape != (matrix.n,):
                raise InputError(f"a bias of {tuple(bias.shape)}", expected=f"({matrix.n},)")
        self.c_struct = CExperts(
            w13.c_struct,
            w2.c_struct,
            None if b13 is None else b13.data_ptr(),
            None if b2 is None else b2.data_ptr(),
            shape.count,
            shape.stride,
            shape.hidden,
            shape.size,
            _BIAS_TYPES[dtypes.pop()],
            _ACTIVATIONS[activation.name],
            activation.alpha,
            activation.limit,
        )
        self._address = ctypes.addressof(self.c_struct)
        self._run = cpu_library().krasis_moe

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """float32 [tokens, hidden], ids int64 and weights float32 [tokens, chosen] -> float32 [tokens, hidden].

        The result is the same bit for bit on every instruction set, in every layout, with every number of threads and
        tokens. Raises InputError for other tensors and for ids that are no expert's.
        """
        x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
        y = torch.empty_like(x)
        self._call(self._arguments(x, ids, weights, y))
        return y

    def bind(self, x: Tensor, ids: Tensor, weights: Tensor, y: Tensor) -> Callable[[], None]:
        """The same on contiguous tensors that are used again: each call reads what they then hold, and writes y.

        They are checked here, once, so that a call costs little before it reaches the kernel.
        """
        arguments, tensors = self._arguments(x, ids, weights, y), (x, ids, weights, y)
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise InputError("a tensor with gaps", expected="contiguous tensors")

        def call(_kept: tuple[Tensor, ...] = tensors) -> None:
            self._call(arguments)

        return call

    def _call(self, arguments: tuple[int, ...]) -> None:
        if status := self._pool.call(self._run, self._address, *arguments):
            raise self._pool.error(status, f"{arguments[1]} tokens, {arguments[5]} of {self._shape.count} experts each")

    def _arguments(self, x: Tensor, ids: Tensor, weights: Tensor, y: Tensor) -> tuple[int, ...]:
        """Those of krasis_moe from x on, whose tensors are contiguous."""
        (m, chosen), hidden = ids.shape, self._shape.hidden
        if x.shape != (m, hidden) or weights.shape != ids.shape or y.shape != x.shape:
            found = f"x {tuple(x.shape)}, ids {tuple(ids.shape)}, weights {tuple(weights.shape)}, y {tuple(y.shape)}"
            raise InputError(found, expected=f"[m, {hidden}], [m, chosen], [m, chosen], [m, {hidden}]")
        dtypes = x.dtype, ids.dtype, weights.dtype, y.dtype
        if dtypes != (torch.float32, torch.int64, torch.float32, torch.float32):
            raise InputError(", ".join(map(str, dtypes)), expected="float32, int64, float32, float32")
        x_at, ids_at, weights_at, y_at = x.data_ptr(), ids.data_ptr(), weights.data_ptr(), y.data_ptr()
        return x_at, m, hidden, ids_at, weights_at, chosen, y_at, hidden
