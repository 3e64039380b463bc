"""The CUDA backend: kernels over marlin tiles on the GPU, experts wherever the plan put them."""

from collections.abc import Callable, Sequence

from torch import Tensor

from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import Ops
from krasis.models.state import Cached
from krasis.native.cuda.gemm import Form, Product, Scratch
from krasis.native.cuda.ops import embed
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, rows_of, side_by_side
from krasis.runtime.cuda.heads import DeviceHeads
from krasis.runtime.cuda.linear import PackedLinear, PlainLinear
from krasis.runtime.cuda.ops import CudaOps
from krasis.runtime.placement.outline import LAYOUT


class CudaBackend:
    """Implements `krasis.runtime.backend.Backend`. `make_experts(layer, activation, beside)` gives those of a layer.

    `position`, int32 [1], is how far the sequence is; `reaches_host` says whether kernels can read the pack's pages,
    `passes` whether a matrix lies where others do at other times. Results are bfloat16, or float32 where asked to be
    wide.
    """

    name = "cuda"
    layouts: tuple[str, ...] = (LAYOUT,)
    kv: KvDtype = "bf16"
    exact_rows = False

    def __init__(
        self,
        position: Tensor,
        scratch: Scratch,
        make_experts: Callable[[int, Activation, Linear | None], Experts],
        *,
        reaches_host: bool,
        passes: Callable[[Tensor], bool],
    ) -> None:
        self._make_experts, self._scratch, self._reaches_host = make_experts, scratch, reaches_host
        self._passes = passes
        self._device = position.device
        self.ops: Ops = CudaOps(position)

    def tensor(self, stored: Tensor) -> Tensor:
        return stored

    def embedding(self, table: Tensor) -> Linear:
        if self._reaches_host:
            return lambda ids: embed(table, ids)
        on_host = rows_of(table)
        return lambda ids: on_host(ids.cpu()).to(self._device)

    def linear(self, matrix: PackedMatrix, *, wide: bool = False) -> Linear:
        if matrix.values is not None:
            fixed = not self._passes(matrix.values)
            return PlainLinear(matrix.values, self.ops, self._scratch, wide=wide, fixed=fixed)
        return self._products([matrix], wide)

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        if any(matrix.values is not None for matrix in matrices):
            return side_by_side([self.linear(matrix) for matrix in matrices])
        return self._products(matrices, wide=False)

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        stored = [matrix.values for matrix in matrices if matrix.values is not None]
        return DeviceHeads(stored, fixed=not any(map(self._passes, stored)))

    def experts(
        self, layer: int, records: ExpertRecords, activation: Activation, beside: Linear | None
    ) -> Experts | None:
        return self._make_experts(layer, activation, beside)

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        raise NotImplementedError("a sequence on the GPU stores its rows itself")

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        raise NotImplementedError("a sequence on the GPU attends itself")

    def _products(self, matrices: Sequence[PackedMatrix], wide: bool) -> Linear:
        products = [_product(matrix) for matrix in matrices]
        fixed = not any(self._passes(product.codes) for product in products)
        return PackedLinear(products, self._scratch, wide=wide, fixed=fixed)


def _product(matrix: PackedMatrix) -> Product:
    spec = matrix.spec
    assert matrix.codes is not None
    assert matrix.scales is not None
    n, k = spec.padded_shape
    return Product(Form(spec.codec, k, n, spec.group_size), matrix.codes, matrix.scales, spec.shape[0], spec.parts)
