"""What lies between products on the GPU, in kernels that a graph may capture.

Activations are bfloat16 [tokens, n], whose rows may lie apart; norms, biases, angles and the residual stream float32;
ids int32. `position` is an int32 tensor of one element on the device: how long the sequence was before these tokens.
All tensors of a call are on one device. Raises KrasisError where a kernel refuses shapes or alignment, of 16 bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.library import FLOAT, INT, LONG, POINTER, TYPES, Function

SCORES = {"softmax": 0, "sigmoid": 1, "logits": 2}
MOST_EXPERTS, MOST_CHOSEN = 512, 16
PARTS = 128

Angles = tuple[Tensor, Tensor]
"""(cos, sin) of all positions, float32 [positions, half] each, contiguous."""

_MATRIX = (POINTER, LONG)
_norm = Function("krasis_cuda_norm", *(POINTER, INT, LONG) * 2, LONG, INT, POINTER, FLOAT, POINTER)
_turn_heads = Function(
    "krasis_cuda_turn_heads", POINTER, LONG, LONG, *[INT] * 3, POINTER, POINTER, FLOAT, *[POINTER] * 2, INT,
    *[POINTER] * 5, INT,
)  # fmt: skip
_turn_latent = Function(
    "krasis_cuda_turn_latent", *_MATRIX * 2, LONG, *[INT] * 3, POINTER, FLOAT, *[POINTER] * 2, INT, *[POINTER] * 3, INT
)
_store = Function("krasis_cuda_store", *_MATRIX[:1], LONG, LONG, INT, INT, *[POINTER] * 3, INT)
_route = Function("krasis_cuda_route", POINTER, POINTER, LONG, *[INT] * 4, FLOAT, POINTER, POINTER)
_gate = Function("krasis_cuda_gate", *_MATRIX * 2, LONG, INT, POINTER)
_swiglu = Function("krasis_cuda_swiglu", *_MATRIX, LONG, INT, *_MATRIX, INT, POINTER, INT, POINTER)
_embed = Function("krasis_cuda_embed", POINTER, INT, INT, POINTER, LONG, POINTER)
_greatest = Function("krasis_cuda_greatest", POINTER, INT, *[POINTER] * 3, INT)


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """Rows [capacity, heads, dim] of a sequence: bfloat16, or float8_e4m3fn times `scales` float32 [capacity, heads].

    Position p lies in row p % capacity: where a window forgets, that of its length and a chunk's is enough.
    """

    values: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        kind = torch.bfloat16 if self.scales is None else torch.float8_e4m3fn
        parts = (self.values,) if self.scales is None else (self.values, self.scales)
        if self.values.dtype is not kind or not all(part.is_contiguous() for part in parts):
            raise InputError(f"a cache of {self.values.dtype}", expected=f"{kind}, contiguous")


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x float32 or bfloat16 [tokens, n] -> `rms_norm` by weight [n], bfloat16."""
    return _normed(x, None, weight, eps)


def add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x float32 += y, float32 or bfloat16, in place; its norm, bfloat16."""
    return _normed(x, y, weight, eps)


def _normed(x: Tensor, add: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    tokens, n = x.shape
    out = torch.empty(tokens, n, dtype=torch.bfloat16, device=x.device)
    added = (None, 0, 0) if add is None else (add, TYPES[add.dtype], add.stride(0))
    _norm(x.device, x, TYPES[x.dtype], x.stride(0), *added, tokens, n, weight, eps, out)
    return out


def turn_heads(
    x: Tensor,
    heads: tuple[int, int],
    dim: int,
    angles: Angles,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    position: Tensor,
    caches: tuple[Cache, Cache] | None = None,
) -> None:
    """Normalize and turn query and key heads [dim], in place; put keys and values into their caches.

    x [tokens, (heads + 2 kv heads) * dim or more] has queries, keys and values side by side; `heads` are those of
    queries and of keys.
    """
    cos, sin = angles
    kept = (
        (None, None, None, None, 0)
        if caches is None
        else (*_parts(caches[0]), *_parts(caches[1]), len(caches[0].values))
    )
    _turn_heads(
        x.device, x, x.shape[0], x.stride(0), *heads, dim, *(norms or (None, None)), eps, cos, sin, cos.shape[-1],
        position, *kept,
    )  # fmt: skip


def turn_latent(
    q: Tensor, kv: Tensor, angles: Angles, norm: Tensor, eps: float, position: Tensor, cache: Cache | None = None
) -> None:
    """q [tokens, heads, nope + rope] and kv [tokens, rank + rope], in place; puts kv into the cache.

    The first dimensions of kv are normalized; the last ones of both, which lie in pairs, turn and become halves.
    """
    cos, sin = angles
    half = cos.shape[-1]
    tokens, heads, dim = q.shape
    kept = (None, None, 0) if cache is None else (*_parts(cache), len(cache.values))
    shape = (tokens, heads, dim - 2 * half, kv.shape[1] - 2 * half)
    given = (side_by_side(q, "q"), q.stride(0), kv, kv.stride(0))
    _turn_latent(q.device, *given, *shape, norm, eps, cos, sin, half, position, *kept)


def store(x: Tensor, cache: Cache, position: Tensor) -> None:
    """Put x [tokens, heads, dim], heads side by side, into the cache."""
    tokens, heads, dim = x.shape
    _store(x.device, side_by_side(x, "x"), tokens, x.stride(0), heads, dim, position, *_parts(cache), len(cache.values))


def route(
    logits: Tensor, bias: Tensor | None, k: int, scores: str, normalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Logits float32 [tokens, experts] -> ids int32 and weights float32, both [tokens, k]; scores is one of SCORES."""
    tokens, experts = logits.shape
    ids = torch.empty(tokens, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=logits.device)
    _route(logits.device, logits, bias, tokens, experts, k, SCORES[scores], normalize, scale, ids, weights)
    return ids, weights


def gate(x: Tensor, gate: Tensor) -> Tensor:
    """x sigmoid(gate), both [tokens, n]."""
    out = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    _gate(x.device, x, x.stride(0), gate, gate.stride(0), *x.shape, out)
    return out


def swiglu(gate_up: Tensor, x: Tensor | None = None, door: Tensor | None = None) -> Tensor:
    """[tokens, 2 n], gate beside up -> silu(gate) up, [tokens, n].

    With a door, float32 or bfloat16 [1, k], times sigmoid(x door^T), x being [tokens, k].
    """
    tokens, both = gate_up.shape
    out = torch.empty(tokens, both // 2, dtype=torch.bfloat16, device=gate_up.device)
    shut = (None, 0, 0, None, 0) if x is None or door is None else (x, x.stride(0), x.shape[1], door, TYPES[door.dtype])
    _swiglu(gate_up.device, gate_up, gate_up.stride(0), tokens, both // 2, *shut, out)
    return out


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` int32 [tokens] of a bfloat16 table [rows, n] -> float32 [tokens, n].

    The table may lie in main memory that the device reaches.
    """
    out = torch.empty(len(ids), table.shape[1], dtype=torch.float32, device=ids.device)
    _embed(ids.device, table, *table.shape, ids, len(ids), out)
    return out


def greatest(logits: Tensor, token: Tensor, position: Tensor | None = None, tokens: int = 1) -> None:
    """Write the first of the greatest logits float32 [n] to token int32 [1], and move position on by `tokens`."""
    parts = torch.empty(2 * PARTS, dtype=torch.float32, device=logits.device)
    _greatest(logits.device, logits, logits.numel(), parts, token, position, tokens)


def side_by_side(x: Tensor, name: str) -> Tensor:
    """x [tokens, heads, dim], whose heads kernels take to lie side by side. Raises InputError where they don't."""
    _, heads, dim = x.shape
    if x.stride(2) != 1 or (heads > 1 and x.stride(1) != dim):
        raise InputError(f"{name} has strides {x.stride()}", expected="heads side by side")
    return x


def _parts(cache: Cache) -> tuple[Tensor, Tensor | None]:
    return cache.values, cache.scales
