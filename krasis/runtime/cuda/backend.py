"""The CUDA backend: kernels over marlin tiles on the GPU, experts wherever the plan put them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import Ops
from krasis.models.state import Cached
from krasis.native.cuda.gemm import Form, Product, Scratch
from krasis.native.cuda.ops import embed
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, rows_of, side_by_side
from krasis.runtime.cuda.linear import PackedLinear
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
            values = matrix.values
            return lambda x: _plain(x, values, wide)
        return self._products([matrix], wide)

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        if any(matrix.values is not None for matrix in matrices):
            return side_by_side([self.linear(matrix) for matrix in matrices])
        return self._products(matrices, wide=False)

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        return DeviceHeads(matrices)

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


class DeviceHeads:
    """Implements `krasis.models.family.Heads`."""

    def __init__(self, matrices: Sequence[PackedMatrix]) -> None:
        self._stacked = _in_place([matrix.values for matrix in matrices if matrix.values is not None])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self._stacked.transpose(1, 2)).transpose(0, 1)

    def dense(self, heads: slice) -> Tensor:
        return self._stacked[heads]


def _in_place(records: Sequence[Tensor]) -> Tensor:
    """[records, ..] without a copy: tensors of one shape that lie equally far apart in one allocation."""
    first = records[0]
    offsets = [record.storage_offset() for record in records]
    apart = offsets[1] - offsets[0] if len(records) > 1 else first.numel()
    assert offsets == [offsets[0] + i * apart for i in range(len(records))]
    return first.as_strided((len(records), *first.shape), (apart, *first.stride()))


def _product(matrix: PackedMatrix) -> Product:
    spec = matrix.spec
    assert matrix.codes is not None
    assert matrix.scales is not None
    n, k = spec.padded_shape
    return Product(Form(spec.codec, k, n, spec.group_size), matrix.codes, matrix.scales, spec.shape[0], spec.parts)


def _plain(x: Tensor, weight: Tensor, wide: bool) -> Tensor:
    """x @ weight^T of an unquantized matrix."""
    if wide and weight.dtype is torch.bfloat16 and x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    if wide:
        return x.float() @ weight.float().T
    return functional.linear(x, weight.to(x.dtype))
