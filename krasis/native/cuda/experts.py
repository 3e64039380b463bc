"""Routed experts on the GPU, wherever their records lie: many tokens sorted by expert, or a few directly."""

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.native.cuda.gemm import CODECS, TILES, Form, Scratch, Tile, check, check_rows, tile_for
from krasis.native.cuda.library import INT, LONG, POINTER, TYPES, Function

CUT = 64
"""Features between w13 and w2 are cut at multiples of this: tiles of w13's columns."""

_CHUNK = 256

_sort = Function("krasis_cuda_sort", POINTER, INT, INT, INT, POINTER, POINTER, POINTER)
_tiles = Function("krasis_cuda_tiles", POINTER, POINTER, INT, INT, POINTER)
_GROUPED = (POINTER, POINTER, POINTER, POINTER, INT, INT, INT)
_up = Function("krasis_cuda_experts_up", *_GROUPED, POINTER, LONG, POINTER, INT)
_down = Function("krasis_cuda_experts_down", *_GROUPED, POINTER, POINTER, INT)
_combine = Function("krasis_cuda_combine", POINTER, POINTER, POINTER, POINTER, INT, INT, INT, POINTER, INT, INT)
_few = Function(
    "krasis_cuda_experts_few",
    *(POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, POINTER, LONG),
    *(POINTER, POINTER, INT, INT, POINTER, POINTER, INT),
)


class _CExperts(ctypes.Structure):
    """`krasis_cuda_experts`."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("hidden", "size")),
        *((name, ctypes.c_int32) for name in ("codec13", "k13", "group13")),
        *((name, ctypes.c_int32) for name in ("codec2", "n2", "group2")),
        *((name, ctypes.c_int64) for name in ("w13_codes", "w13_scales", "w2_codes", "w2_scales", "b13", "b2")),
        ("bias_type", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("limit", ctypes.c_float),
    )


@dataclass(frozen=True)
class ExpertForm:
    """The records of a layer's experts: w13 is gate over up of `hidden` features, w2 gives `hidden` features.

    Offsets are in bytes from the start of a record, codes and scales at multiples of 16; those of biases, of
    `bias_dtype` and padded as the columns of their matrices, may be None. `limit` is 0 for SwiGLU, else with `alpha`
    that of gpt-oss's clamped one.
    """

    hidden: int
    w13: Form
    w2: Form
    w13_codes: int
    w13_scales: int
    w2_codes: int
    w2_scales: int
    b13: int | None = None
    b2: int | None = None
    bias_dtype: torch.dtype = torch.bfloat16
    alpha: float = 0.0
    limit: float = 0.0
    c_struct: _CExperts = field(init=False, repr=False, compare=False)
    address: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.w13.n != 2 * self.w2.k:
            raise InputError(f"w13 of {self.w13.n} columns before w2 of K = {self.w2.k}", expected="twice as many")
        c_struct = _CExperts(
            *(self.hidden, self.size),
            *(CODECS[self.w13.codec], self.w13.k, self.w13.group_size),
            *(CODECS[self.w2.codec], self.w2.n, self.w2.group_size),
            *(self.w13_codes, self.w13_scales, self.w2_codes, self.w2_scales),
            *(-1 if offset is None else offset for offset in (self.b13, self.b2)),
            *(TYPES[self.bias_dtype], self.alpha, self.limit),
        )
        object.__setattr__(self, "c_struct", c_struct)
        object.__setattr__(self, "address", ctypes.addressof(c_struct))

    @property
    def size(self) -> int:
        """Features between w13 and w2, with padding."""
        return self.w2.k


@dataclass(frozen=True, eq=False)
class Routes:
    """Pairs token * slots + slot sorted by expert: pairs[offsets[e] : offsets[e + 1]] are those of expert e."""

    ids: Tensor
    offsets: Tensor
    pairs: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and slots."""
        return self.ids.shape[0], self.ids.shape[1]


def sort(ids: Tensor, experts: int) -> Routes:
    """ids int32 [tokens, slots], -1 being no expert. Pairs of an expert are in ascending order."""
    check(ids, "ids", torch.int32, (ids.shape[0], ids.shape[1]))
    total = ids.numel()
    offsets = ids.new_empty(experts + 1)
    pairs, scratch = ids.new_empty(total), ids.new_empty(experts * (2 + total // _CHUNK))
    _sort(ids.device, ids, *ids.shape, experts, offsets, pairs, scratch)
    return Routes(ids, offsets, pairs)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some experts' share of the rows of `routes`, cut into tiles for products."""

    routes: Routes
    count: int
    tiles: Tensor
    tile: Tile

    def arguments(self, form: ExpertForm, records: Tensor) -> tuple[object, ...]:
        tokens, slots = self.routes.shape
        return form.address, records, self.tiles, self.routes.pairs, tokens, slots, self.count


def batch(routes: Routes, experts: Tensor, tile: Tile | None = None) -> Batch:
    """`experts` int32 [count], each once, on the device: those whose products are to be computed together.

    Without a tile, the one for as many rows an expert as there are on average.
    """
    check(experts, "experts", torch.int32, (len(experts),))
    tile = tile or tile_for(routes.ids.numel() / (len(routes.offsets) - 1))
    rows = int(tile.split("x")[0])
    tiles = experts.new_empty(4 * (1 + routes.ids.numel() // rows + len(experts)))
    _tiles(experts.device, routes.offsets, experts, len(experts), TILES[tile], tiles)
    return Batch(routes, len(experts), tiles, tile)


def experts_up(form: ExpertForm, records: Tensor, chosen: Batch, x: Tensor, h: Tensor) -> Tensor:
    """h bfloat16 [tokens * slots, size], rows in the order of `pairs`, = activation(x @ w13^T + b13); returns it.

    `records` are the addresses of all experts' records, int64, of which those of `chosen` are read; x is bfloat16
    [tokens, hidden]. Rows of other experts stay as they are.
    """
    tokens, slots = chosen.routes.shape
    if check_rows(x) != (tokens, form.hidden):
        raise InputError(f"x {tuple(x.shape)}", expected=f"({tokens}, {form.hidden})")
    check(h, "h", torch.bfloat16, (tokens * slots, form.size))
    _up(x.device, *chosen.arguments(form, records), x, x.stride(0), h, TILES[chosen.tile])
    return h


def experts_down(form: ExpertForm, records: Tensor, chosen: Batch, h: Tensor, y: Tensor) -> Tensor:
    """y bfloat16 [tokens * slots, hidden], rows by pair, = h @ w2^T + b2; returns it. Others stay as they are."""
    tokens, slots = chosen.routes.shape
    check(h, "h", torch.bfloat16, (tokens * slots, form.size))
    check(y, "y", torch.bfloat16, (tokens * slots, form.hidden))
    _down(h.device, *chosen.arguments(form, records), h, y, TILES[chosen.tile])
    return y


def combine(
    y: Tensor, ids: Tensor, weights: Tensor, out: Tensor, *, records: Tensor | None = None, add: bool = False
) -> Tensor:
    """out [tokens, hidden], float32 or bfloat16, = sum over slots of weights * y; returns it. `add`: to what it holds.

    ids int32 and weights float32 [tokens, slots]; slots of -1, and of experts whose record is 0, add nothing.
    """
    tokens, slots, hidden = _check_routed(ids, weights, out)
    check(y, "y", torch.bfloat16, (tokens * slots, hidden))
    _combine(y.device, y, ids, weights, records, tokens, slots, hidden, out, TYPES[out.dtype], add)
    return out


def experts_few(
    form: ExpertForm,
    records: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    h: Tensor,
    out: Tensor,
    scratch: Scratch,
    *,
    first: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """All of it for at most `MOST_FEW` tokens, without rounding weights: out as that of `combine`, which is returned.

    h is scratch, bfloat16 [tokens * slots, size]. Nothing is read of experts whose record is 0, or of ids of -1. With
    `first`, int32 as many as `records`, only features from first[expert] on are computed, a multiple of
    `CUT`; b2 is added where that is 0.
    """
    tokens, slots, _ = _check_routed(ids, weights, out)
    if check_rows(x) != (tokens, form.hidden) or out.shape[1] != form.hidden:
        raise InputError(f"x {tuple(x.shape)}", expected=f"({tokens}, {form.hidden}), as the result")
    check(h, "h", torch.bfloat16, (tokens * slots, form.size))
    if first is not None:
        check(first, "first", torch.int32, (len(records),))
    routed = form.address, records, first, ids, weights, tokens, slots, x, x.stride(0)
    scratched = scratch.partials, scratch.counters, scratch.blocks
    _few(x.device, *routed, h, out, TYPES[out.dtype], add, *scratched)
    return out


def _check_routed(ids: Tensor, weights: Tensor, out: Tensor) -> tuple[int, int, int]:
    tokens, slots = ids.shape
    check(ids, "ids", torch.int32, (tokens, slots))
    check(weights, "weights", torch.float32, (tokens, slots))
    if out.dtype not in TYPES or out.dim() != 2 or len(out) != tokens or not out.is_contiguous():
        raise InputError(f"an output {tuple(out.shape)} of {out.dtype}", expected=f"({tokens}, hidden), contiguous")
    return tokens, slots, out.shape[1]
