"""Causal attention on the GPU: over a cache by few tokens, and over bfloat16 keys and values by many.

q bfloat16 [tokens, heads, dim], its heads side by side, begins at `position`, an int32 tensor on the device; keys and
values of these tokens are cached already. A token sees the `window` positions up to its own, all where it is 0. `sinks`
float32 [heads] are logits that join the softmax and are then dropped. Returns bfloat16 [tokens, heads, v dim].
"""

import ctypes

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.library import FLOAT, INT, LONG, POINTER, Function
from krasis.native.cuda.ops import Cache, side_by_side

MOST_SPLITS = 256
_ROWS, _LEAST_KEYS = 16, 32

_few = Function(
    "krasis_cuda_attention_few", POINTER, LONG, LONG, INT, POINTER, POINTER, INT, INT, FLOAT, POINTER, POINTER, INT,
    POINTER, POINTER,
)  # fmt: skip
_many = Function(
    "krasis_cuda_attention_many", POINTER, LONG, LONG, *[INT] * 4, *(POINTER, LONG, LONG) * 2, INT, INT, FLOAT,
    *[POINTER] * 3,
)  # fmt: skip
_widen = Function("krasis_cuda_widen", POINTER, POINTER, LONG, INT, POINTER)


class _CCache(ctypes.Structure):
    _fields_ = (
        ("values", POINTER),
        ("scales", POINTER),
        ("capacity", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
    )


def attention_few(
    q: Tensor,
    k: Cache,
    v: Cache,
    scale: float,
    position: Tensor,
    window: int = 0,
    sinks: Tensor | None = None,
    v_dim: int = 0,
) -> Tensor:
    """For up to 8 tokens, or a few hundred of latent attention, where v is k: values are its first v_dim dimensions."""
    tokens, heads, dim = q.shape
    capacity, kv_heads, k_dim = k.values.shape
    v_dim = v_dim or v.values.shape[-1]
    if dim != k_dim or v.values.shape[:2] != (capacity, kv_heads):
        raise InputError(f"q {tuple(q.shape)}, k {tuple(k.values.shape)}, v {tuple(v.values.shape)}")
    splits = split_count(tokens, heads, kv_heads, dim, min(capacity, window + tokens - 1) if window else capacity)
    workspace = torch.empty(splits * tokens * heads * (v_dim + 2), dtype=torch.float32, device=q.device)
    out = torch.empty(tokens, heads, v_dim, dtype=torch.bfloat16, device=q.device)
    keys, values = _c_cache(k), _c_cache(v)
    caches = (ctypes.addressof(keys), ctypes.addressof(values))
    given = (side_by_side(q, "q"), q.stride(0), tokens, heads, *caches, v_dim, window, scale, sinks, position)
    _few(q.device, *given, splits, workspace, out)
    return out


def split_count(tokens: int, heads: int, kv_heads: int, dim: int, seen: int) -> int:
    """How many blocks share out at most `seen` positions, so that a GPU is filled: the same at every length.

    An H100's 132 multiprocessors hold two blocks each, and more of small heads, whose tiles are small.
    """
    blocks = 2 * 132 if dim > 64 else 4 * 132
    tiles = kv_heads * -(-tokens * (heads // kv_heads) // _ROWS)
    return max(1, min(blocks // tiles, -(-seen // _LEAST_KEYS), MOST_SPLITS))


def attention_many(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    position: Tensor,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """k [capacity, kv heads, dim] and v [.., v dim] bfloat16, position p in row p % capacity; v dim at most 256."""
    tokens, heads, dim = q.shape
    capacity, kv_heads, v_dim = v.shape
    if k.shape != (capacity, kv_heads, dim) or k.dtype is not v.dtype or k.dtype is not torch.bfloat16:
        raise InputError(f"q {tuple(q.shape)}, k {k.dtype} {tuple(k.shape)}, v {v.dtype} {tuple(v.shape)}")
    out = torch.empty(tokens, heads, v_dim, dtype=torch.bfloat16, device=q.device)
    strides = (k, *k.stride()[:2], v, *v.stride()[:2])
    shape = (tokens, heads, kv_heads, dim, v_dim)
    _many(q.device, side_by_side(q, "q"), q.stride(0), *shape, *strides, capacity, window, scale, sinks, position, out)
    return out


def widen(cache: Cache, position: Tensor, tokens: int, window: int, out: Tensor) -> Tensor:
    """The rows of an e4m3 cache that `tokens` from position on see, in bfloat16 in the same rows of out."""
    if out.shape != cache.values.shape or out.dtype is not torch.bfloat16 or not out.is_contiguous():
        raise InputError(f"out is {out.dtype} {tuple(out.shape)}", expected=f"bfloat16 {tuple(cache.values.shape)}")
    rows = _c_cache(cache)
    _widen(out.device, ctypes.addressof(rows), position, tokens, window, out)
    return out


def _c_cache(cache: Cache) -> _CCache:
    scales = None if cache.scales is None else cache.scales.data_ptr()
    return _CCache(cache.values.data_ptr(), scales, *cache.values.shape)
