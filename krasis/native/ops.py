"""What lies between products, by native kernels: each operation one call. The reference is `krasis.models.ops`.

Nothing here depends on the models: shapes are what the caller passes, and arguments are named as in `krasis.h`. Tensors
are float32 in main memory, the last dimension contiguous; InputError says which one is not.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cpu import Pool
from krasis.native.delta_net import DeltaNet
from krasis.native.library import cpu_library

GATES = {"sigmoid": 0, "silu": 1, "rows": 2}
SCORES = {"softmax": 0, "sigmoid": 1, "logits": 2}
MOST_HEAD_DIM = 1024
"""Dimensions of a head that the kernels take."""
MOST_ROUTED = 4096

_ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 3}


class _CDeltaNet(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("key_heads", "value_heads", "key_dim", "value_dim")),
        *((name, ctypes.c_void_p) for name in ("rate", "dt_bias", "norm")),
        ("norm_eps", ctypes.c_float),
    )


class _CRows(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("stride", "head_stride", "scale_stride")),
        ("type", ctypes.c_int32),
    )


@dataclass(frozen=True, eq=False)
class CpuDeltaNet(DeltaNet):
    """A `krasis_delta_net`."""

    def __post_init__(self) -> None:
        lengths = {"rate": self.value_heads, "dt_bias": self.value_heads, "norm": self.value_dim}
        for name, length in lengths.items():
            _check(getattr(self, name), name, (length,))
        addresses = (getattr(self, name).data_ptr() for name in lengths)
        heads = (self.key_heads, self.value_heads, self.key_dim, self.value_dim)
        object.__setattr__(self, "c_struct", _CDeltaNet(*heads, *addresses, self.norm_eps))

    @property
    def channels(self) -> int:
        """Of queries, keys and values together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


class NativeOps:
    """The operations on a pool. Raises InputError for tensors of other shapes, KrasisError if the pool is closed."""

    def __init__(self, pool: Pool) -> None:
        library = cpu_library()
        self._pool = pool
        self._norm, self._gate = library.krasis_norm, library.krasis_gate
        self._add, self._copy = library.krasis_add, library.krasis_copy
        self._turn_heads, self._turn_latent = library.krasis_turn_heads, library.krasis_turn_latent
        self._conv, self._route = library.krasis_conv, library.krasis_route
        self._delta_net, self._attention = library.krasis_delta_net_step, library.krasis_attention
        self._store = library.krasis_store

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[rows, n] -> x / sqrt(mean of x^2 + eps) * weight [n]."""
        x = _contiguous(x, "x")
        rows, n = x.shape
        _check(weight, "weight", (n,))
        y = torch.empty_like(x)
        self._do(self._norm, x.data_ptr(), None, rows, n, weight.data_ptr(), eps, None, y.data_ptr())
        return y

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(x + y, its norm). y is overwritten with the sum where it is contiguous."""
        x, y = _contiguous(x, "x"), _contiguous(y, "y")
        rows, n = x.shape
        _check(y, "y", (rows, n))
        _check(weight, "weight", (n,))
        out, at = torch.empty_like(x), y.data_ptr()
        arguments = (x.data_ptr(), at, rows, n, weight.data_ptr(), eps, at, out.data_ptr())
        self._do(self._norm, *arguments)
        return y, out

    def turn_heads(
        self,
        x: Tensor,
        heads: tuple[int, int],
        dim: int,
        angles: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """Normalize and turn, in place, the query and key heads in the first columns of x [tokens, n]."""
        tokens, n = x.shape
        cos, sin, half = _angles(angles, tokens)
        if sum(heads) * dim > n or 2 * half > dim:
            raise InputError(f"x {tuple(x.shape)}, {heads} heads of {dim}, {2 * half} turning")
        q_norm, k_norm = (None, None) if norms is None else (_vector(norm, "norm", dim) for norm in norms)
        _check(x, "x", (tokens, n))
        arguments = (x.data_ptr(), tokens, x.stride(0), *heads, dim, q_norm, k_norm, eps, cos, sin, half)
        self._do(self._turn_heads, *arguments)

    def turn_latent(self, q: Tensor, kv: Tensor, angles: tuple[Tensor, Tensor], norm: Tensor, eps: float) -> None:
        """The same of latent attention: q [tokens, heads, nope + rope], kv [tokens, rank + rope], norm [rank]."""
        tokens, heads, dim = q.shape
        cos, sin, half = _angles(angles, tokens)
        rank = kv.shape[-1] - 2 * half
        _check(q, "q", (tokens, heads, dim))
        _check(kv, "kv", (tokens, kv.shape[-1]))
        if q.stride(1) != dim and heads > 1:
            raise InputError(f"q has strides {q.stride()}", expected="heads side by side")
        arguments = (q.data_ptr(), q.stride(0), kv.data_ptr(), kv.stride(0), tokens, heads, dim - 2 * half, rank)
        weight = _vector(norm, "norm", rank)
        self._do(self._turn_latent, *arguments, weight, eps, cos, sin, half)

    def gate(self, x: Tensor, gate: Tensor, kind: str) -> Tensor:
        """x and gate [rows, n], one of GATES -> [rows, n]. "silu": x is up; "rows": gate is [rows, 1]."""
        rows, n = x.shape
        _check(x, "x", (rows, n))
        _check(gate, "gate", (rows, 1 if kind == "rows" else n))
        y = torch.empty((rows, n), dtype=torch.float32)
        arguments = (x.data_ptr(), x.stride(0), gate.data_ptr(), gate.stride(0), rows, n, GATES[kind])
        self._do(self._gate, *arguments, y.data_ptr())
        return y

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """y [rows, n], contiguous, to which x, [rows, n] or [n], was added."""
        rows, n = y.shape
        one = x.dim() == 1
        _check(x, "x", (n,) if one else (rows, n))
        self._do(self._add, x.data_ptr(), 0 if one else x.stride(0), rows, n, _matrix(y, "y", (rows, n)))
        return y

    def copy(self, x: Tensor, y: Tensor) -> None:
        """y = x, both [rows, n]."""
        rows, n = x.shape
        _check(x, "x", (rows, n))
        _check(y, "y", (rows, n))
        self._do(self._copy, x.data_ptr(), x.stride(0), rows, n, y.data_ptr(), y.stride(0))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 n] -> up * gate * sigmoid(gate) [rows, n], gate lying beside up."""
        rows, both = gate_up.shape
        _check(gate_up, "gate_up", (rows, both))
        n, stride, gate = both // 2, gate_up.stride(0), gate_up.data_ptr()
        y = torch.empty((rows, n), dtype=torch.float32)
        up = gate + n * y.element_size()
        arguments = (up, stride, gate, stride, rows, n, GATES["silu"], y.data_ptr())
        self._do(self._gate, *arguments)
        return y

    def conv_silu(self, x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        """x [tokens, channels], weight [width, channels], state [width - 1, channels], which is overwritten."""
        (tokens, channels), width = x.shape, weight.shape[0]
        _check(x, "x", (tokens, channels))
        weights, states = _matrix(weight, "weight", (width, channels)), _matrix(state, "state", (width - 1, channels))
        y = torch.empty((tokens, channels), dtype=torch.float32)
        arguments = (x.data_ptr(), tokens, x.stride(0), channels, weights, width, states, y.data_ptr())
        self._do(self._conv, *arguments)
        return y

    def route(
        self, logits: Tensor, bias: Tensor | None, k: int, scores: str, normalize: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Logits [tokens, experts] -> ids int64 and weights float32, both [tokens, k]; scores is one of SCORES."""
        logits = _contiguous(logits, "logits")
        tokens, experts = logits.shape
        added = None if bias is None else _vector(bias, "bias", experts)
        ids, weights = torch.empty((tokens, k), dtype=torch.int64), torch.empty((tokens, k), dtype=torch.float32)
        arguments = (logits.data_ptr(), added, tokens, experts, k, SCORES[scores], normalize, scale)
        self._do(self._route, *arguments, ids.data_ptr(), weights.data_ptr())
        return ids, weights

    def delta_net(self, qkv: Tensor, z: Tensor, beta_step: Tensor, net: CpuDeltaNet, memory: Tensor) -> Tensor:
        """[tokens, value_heads * value_dim], token by token; see `krasis_delta_net_step`."""
        tokens, values = qkv.shape[0], net.value_heads * net.value_dim
        _check(qkv, "qkv", (tokens, net.channels))
        _check(z, "z", (tokens, values))
        _check(beta_step, "beta_step", (tokens, 2 * net.value_heads))
        state = _matrix(memory, "memory", (net.value_heads, net.key_dim, net.value_dim))
        out = torch.empty((tokens, values), dtype=torch.float32)
        given = (part for x in (qkv, z, beta_step) for part in (x.data_ptr(), x.stride(0)))
        form = ctypes.addressof(net.c_struct)  # type: ignore[attr-defined]
        self._do(self._delta_net, form, *given, tokens, state, out.data_ptr())
        return out

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        """Put x [tokens, heads, dim] into values [rows, heads, dim] from row `at` on, rounded to nearest even.

        Values are float32, bfloat16 or, with scales [rows, heads, 1], e4m3: a row and head's is max(|x|, 1e-12) / 448.
        All of it is contiguous but for the tokens of x.
        """
        tokens, heads, dim = x.shape
        _check(x, "x", (tokens, heads, dim))
        if x.stride(1) != dim and heads > 1:
            x = x.contiguous()
        fits = values.shape[1:] == x.shape[1:] and 0 <= at <= at + tokens <= values.shape[0]
        known = values.dtype in _ROW_TYPES and (values.dtype is torch.float8_e4m3fn) == (scales is not None)
        if not fits or not known or not values.is_contiguous():
            raise InputError(f"x {tuple(x.shape)} at {at} of {values.dtype} {tuple(values.shape)}")
        steps = None if scales is None else _matrix(scales, "scales", (values.shape[0], heads, 1))
        kind = _ROW_TYPES[values.dtype]
        self._do(self._store, x.data_ptr(), tokens, x.stride(0), heads, dim, kind, at, values.data_ptr(), steps)

    def attention(
        self,
        q: Tensor,
        k: tuple[Tensor, Tensor | None],
        v: tuple[Tensor, Tensor | None],
        scale: float,
        window: int = 0,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q [tokens, heads, dim], k and v [length, kv heads, dim] with scales [length, kv heads, 1] -> as q.

        k and v are float32, bfloat16 or, with scales, e4m3. Each token is computed by itself: meant for few of them.
        """
        tokens, heads, dim = q.shape
        length, kv_heads, k_dim = k[0].shape
        v_dim = v[0].shape[-1]
        if k_dim != dim or v[0].shape[:2] != (length, kv_heads) or heads % kv_heads or length < tokens:
            raise InputError(f"q {tuple(q.shape)}, k {tuple(k[0].shape)}, v {tuple(v[0].shape)}")
        _check(q, "q", (tokens, heads, dim))
        if q.stride(1) != dim and heads > 1:
            q = q.contiguous()
        keys, values = _rows(*k), _rows(*v)
        out = torch.empty((tokens, heads, v_dim), dtype=torch.float32)
        lookback = (length, heads, kv_heads, dim, v_dim, window, scale)
        sink = None if sinks is None else _vector(sinks, "sinks", heads)
        self._pool.keep(keys, values)
        given = (q.data_ptr(), tokens, q.stride(0), ctypes.addressof(keys), ctypes.addressof(values))
        self._do(self._attention, *given, *lookback, sink, out.data_ptr())
        return out

    def _do(self, function: Any, *arguments: Any) -> None:
        if status := self._pool.call(function, *arguments):
            raise self._pool.error(status)


def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if x.shape != shape or x.dtype is not torch.float32 or not x.is_cpu or (shape[-1] > 1 and x.stride(-1) != 1):
        found = f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}, strides {x.stride()}"
        raise InputError(found, expected=f"float32 {shape} in main memory, the last dimension contiguous")


def _contiguous(x: Tensor, name: str) -> Tensor:
    if x.dtype is not torch.float32 or not x.is_cpu or x.dim() != 2:
        raise InputError(f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}", expected="a float32 matrix")
    return x.contiguous()


def _matrix(x: Tensor, name: str, shape: tuple[int, ...]) -> int:
    _check(x, name, shape)
    if not x.is_contiguous():
        raise InputError(f"{name} has strides {x.stride()}", expected="one run of memory")
    return x.data_ptr()


def _vector(x: Tensor, name: str, length: int) -> int:
    _check(x, name, (length,))
    return x.data_ptr()


def _angles(angles: tuple[Tensor, Tensor], tokens: int) -> tuple[int, int, int]:
    cos, sin = angles
    half = cos.shape[-1]
    return _matrix(cos, "cos", (tokens, 1, half)), _matrix(sin, "sin", (tokens, 1, half)), half


def _rows(values: Tensor, scales: Tensor | None) -> _CRows:
    stride, head_stride, step = values.stride()
    if values.dtype not in _ROW_TYPES or not values.is_cpu or (step != 1 and values.shape[-1] > 1):
        found = f"rows are {values.dtype} on {values.device}, strides {values.stride()}"
        raise InputError(found, expected=f"{', '.join(map(str, _ROW_TYPES))}, the last dimension contiguous")
    if scales is None:
        return _CRows(values.data_ptr(), None, stride, head_stride, 0, _ROW_TYPES[values.dtype])
    length, heads, _ = values.shape
    _check(scales, "scales", (length, heads, 1))
    if heads > 1 and scales.stride(1) != 1:
        raise InputError(f"scales have strides {scales.stride()}", expected="heads side by side")
    return _CRows(values.data_ptr(), scales.data_ptr(), stride, head_stride, scales.stride(0), _ROW_TYPES[values.dtype])
