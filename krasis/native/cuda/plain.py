"""Products of at most eight rows with matrices that are not packed, and a router's choice in the same kernel."""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.gemm import MOST_FEW, Scratch
from krasis.native.cuda.library import FLOAT, INT, LONG, POINTER, TYPES, Function
from krasis.native.cuda.ops import SCORES

_plain = Function(
    "krasis_cuda_plain", POINTER, INT, INT, LONG, *[INT] * 3, POINTER, INT, LONG, LONG, POINTER, INT, LONG, LONG, INT
)
_choose = Function(
    "krasis_cuda_choose", POINTER, *[INT] * 3, POINTER, INT, LONG, POINTER, *[INT] * 3, FLOAT, *[POINTER] * 4, INT
)


def takes(weight: Tensor, x: Tensor) -> bool:
    """Whether the kernels here multiply x bfloat16 [tokens, .., k or more] by weight [.., n, k]."""
    return (
        len(x) <= MOST_FEW
        and x.dtype is torch.bfloat16
        and weight.dtype in TYPES
        and weight.stride(-1) == x.stride(-1) == 1
        and weight.stride(-2) == weight.shape[-1]
        and not any(stride % 8 for stride in (*weight.stride()[:-1], *x.stride()[:-1]))
        and not any(part.data_ptr() % 16 for part in (weight, x))
    )


def plain(weight: Tensor, x: Tensor, out: Tensor, *, fixed: bool = False) -> Tensor:
    """x [tokens, k] -> out [tokens, n], float32 or bfloat16, which is returned, by weight [n, k]; see `takes`.

    `fixed`: nothing is ever written where the weights lie; see `Products`.
    """
    (n, k), tokens = weight.shape, len(x)
    if x.shape[1] != k or out.shape != (tokens, n) or out.stride(1) != 1:
        raise InputError(f"x {tuple(x.shape)} and an output {tuple(out.shape)}", expected=f"[.., {k}] and [.., {n}]")
    given = (weight, TYPES[weight.dtype], 1, 0, n, k, 0, x, tokens, x.stride(0), 0)
    _plain(out.device, *given, out, TYPES[out.dtype], out.stride(0), 0, fixed)
    return out


def each_head(weights: Tensor, x: Tensor, *, fixed: bool = False) -> Tensor:
    """x [tokens, heads, k + rest] -> bfloat16 [tokens, heads, n + rest], by weights [heads, n, k]: the rest stays."""
    heads, n, k = weights.shape
    rest = x.shape[2] - k
    if x.shape[1] != heads or rest < 0:
        raise InputError(f"x {tuple(x.shape)}", expected=f"[.., {heads}, {k} or more]")
    out = torch.empty(len(x), heads, n + rest, dtype=torch.bfloat16, device=x.device)
    given = (weights, TYPES[weights.dtype], heads, weights.stride(0), n, k, rest, x, len(x), *x.stride()[:2])
    _plain(out.device, *given, out, TYPES[out.dtype], *out.stride()[:2], fixed)
    return out


def choose(
    router: Tensor,
    x: Tensor,
    bias: Tensor | None,
    k: int,
    scores: str,
    normalize: bool,
    scale: float,
    scratch: Scratch,
    *,
    fixed: bool = False,
) -> tuple[Tensor, Tensor]:
    """`krasis.native.cuda.ops.route` of the logits of x [tokens, features], by router [experts, features]."""
    (experts, features), tokens = router.shape, len(x)
    if x.shape[1] != features:
        raise InputError(f"x {tuple(x.shape)}", expected=f"[.., {features}]")
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=x.device)
    ids = torch.empty(tokens, k, dtype=torch.int32, device=x.device)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=x.device)
    given = (router, TYPES[router.dtype], experts, features, x, tokens, x.stride(0), bias)
    way = (k, SCORES[scores], normalize, scale)
    _choose(x.device, *given, *way, logits, scratch.counters, ids, weights, fixed)
    return ids, weights
