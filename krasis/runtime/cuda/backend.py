"""The CUDA backend: kernels over marlin tiles on the GPU, experts wherever the plan put them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import Ops, TorchOps
from krasis.models.state import Cached
from krasis.native.cuda.dequantize import dequantize
from krasis.runtime.attention import fast_attention
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, side_by_side, strip_parts
from krasis.runtime.placement.outline import LAYOUT
from krasis.runtime.rows import store_rows


class CudaBackend:
    """Implements `krasis.runtime.backend.Backend`. `make_experts(layer, activation)` gives those of a layer."""

    name = "cuda"
    layouts: tuple[str, ...] = (LAYOUT,)
    kv: KvDtype = "bf16"

    def __init__(self, device: torch.device, make_experts: Callable[[int, Activation], Experts]) -> None:
        self._device, self._make_experts = device, make_experts
        self.ops: Ops = TorchOps()

    def tensor(self, stored: Tensor) -> Tensor:
        return stored

    def embedding(self, table: Tensor) -> Linear:
        return lambda ids: functional.embedding(ids.cpu(), table).to(self._device).float()

    def linear(self, matrix: PackedMatrix) -> Linear:
        return lambda x: x.float() @ dense(matrix).T

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        return side_by_side([self.linear(matrix) for matrix in matrices])

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        return DeviceHeads(matrices)

    def experts(self, layer: int, records: ExpertRecords, activation: Activation) -> Experts | None:
        return self._make_experts(layer, activation)

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        store_rows(values, scales, at, x)

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        return fast_attention(q, k, v, scale, window, sinks)


def dense(matrix: PackedMatrix) -> Tensor:
    spec = matrix.spec
    if matrix.values is not None:
        return matrix.values.float()
    assert matrix.codes is not None and matrix.scales is not None
    n, k = spec.padded_shape
    weight = dequantize(spec.codec, matrix.codes, matrix.scales, k, n, spec.group_size).float()
    return strip_parts(weight[:, : spec.shape[1]].T.contiguous(), spec).T


class DeviceHeads:
    """Implements `krasis.models.family.Heads`."""

    def __init__(self, matrices: Sequence[PackedMatrix]) -> None:
        found = [matrix.values for matrix in matrices]
        self._stacked = torch.stack([values for values in found if values is not None])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("thk,hnk->thn", x, self._stacked.to(x.dtype))

    def dense(self, heads: slice) -> Tensor:
        return self._stacked[heads].float()
