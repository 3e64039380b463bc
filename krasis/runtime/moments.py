"""Sums the second moments of what experts are given while a model runs: the makings of an importance matrix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.errors import FitError
from krasis.heat.imatrix import LayerMoments, pack_shares
from krasis.models.family import Experts, Linear
from krasis.pack.reader import Pack
from krasis.quant.feedback import coefficients

Load = Callable[[int], tuple[Linear, Linear]]


@dataclass(frozen=True)
class MoeShape:
    """A layer of `experts` experts on `hidden` features, `size` of their own."""

    experts: int
    hidden: int
    size: int


def moe_shapes(pack: Pack, layers: dict[int, int]) -> dict[int, MoeShape]:
    """The shapes of the layers that have so many experts."""
    shapes = {}
    for layer, experts in layers.items():
        name = f"layers.{layer}.experts"
        tensors = pack.segment(name, pack.layouts_of[name][0]).tensors
        (w13,), (w2,) = ([t for t in tensors if t.name == wanted] for wanted in ("w13", "w2"))
        shapes[layer] = MoeShape(experts, w13.shape[1], w2.shape[1])
    return shapes


class _Sums:
    """Squares are summed in float64. The products of all pairs are many, and damped before use: float32 will do."""

    def __init__(self, shape: MoeShape) -> None:
        self.tokens = torch.zeros(shape.experts, dtype=torch.int64)
        self.w13 = torch.zeros(shape.experts, shape.hidden, dtype=torch.float64)
        self.w2 = torch.zeros(shape.experts, shape.size, dtype=torch.float64)
        self.products = torch.zeros(shape.hidden, shape.hidden)
        self.inputs = torch.zeros(1, dtype=torch.int64)


class Moments:
    """Watches layers of the given shapes; `active` says whether what passes counts."""

    def __init__(self, shapes: dict[int, MoeShape]) -> None:
        self.active = True
        self._sums = {layer: _Sums(shape) for layer, shape in shapes.items()}

    def watch(self, layer: int, load: Load, run: Callable[[Load], Experts]) -> Experts:
        """The experts that `run` makes of `load`, watched."""
        sums = self._sums[layer]
        experts = run(lambda expert: self._watched(sums, expert, *load(expert)))

        def observe(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            if self.active:
                sums.products.addmm_(x.T, x)
                sums.inputs += len(x)
            return experts(x, ids, weights)

        return observe

    def _watched(self, sums: _Sums, expert: int, w13: Linear, w2: Linear) -> tuple[Linear, Linear]:
        def first(x: Tensor) -> Tensor:
            if self.active:
                sums.tokens[expert] += len(x)
                sums.w13[expert] += x.double().square().sum(0)
            return w13(x)

        def second(x: Tensor) -> Tensor:
            if self.active:
                sums.w2[expert] += x.double().square().sum(0)
            return w2(x)

        return first, second

    def memory(self) -> list[memoryview]:
        """All sums where they lie, to be saved and filled again."""
        return [tensor.numpy().data for sums in self._sums.values() for tensor in vars(sums).values()]

    def layers(self) -> Iterator[tuple[int, LayerMoments]]:
        """Layer and its moments over all that counted. Raises InputError where they are no finite numbers."""
        for layer, sums in self._sums.items():
            tokens = sums.tokens.clamp_min(1).unsqueeze(1)
            shares = pack_shares(coefficients(sums.products / sums.inputs.clamp_min(1)))
            w13, w2 = ((found / tokens).float() for found in (sums.w13, sums.w2))
            yield layer, LayerMoments(sums.tokens, w13, w2, shares)


def left_beside(shapes: dict[int, MoeShape], available: int) -> int:
    """Bytes of memory left beside `Moments` and the file made of it. Raises FitError where it has no room itself."""
    vectors = sum(s.experts * (s.hidden + s.size + 1) for s in shapes.values())
    squares = sum(s.hidden**2 for s in shapes.values())
    largest = max((s.hidden**2 for s in shapes.values()), default=0)
    # The file is made in memory before it is written: vectors in float32 and half of the squares in bfloat16, twice.
    need = 16 * vectors + 6 * squares + 48 * largest
    if need > available:
        what = f"an importance matrix takes {need / 2**30:.2f} GiB"
        raise FitError(what, where="RAM", expected=f"{available / 2**30:.2f} GiB are available")
    return available - need
