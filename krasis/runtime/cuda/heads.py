"""A plain matrix a head on the GPU, multiplied where they lie."""

from collections.abc import Sequence

import torch
from torch import Tensor

from krasis.native.cuda.plain import each_head, takes


class DeviceHeads:
    """Implements `krasis.models.family.Heads`. `fixed`: see `Products`."""

    def __init__(self, matrices: Sequence[Tensor], *, fixed: bool) -> None:
        self._stacked, self._fixed = _in_place(matrices), fixed

    def __call__(self, x: Tensor) -> Tensor:
        if takes(self._stacked, x):
            return each_head(self._stacked, x, fixed=self._fixed)
        return torch.bmm(x.transpose(0, 1), self._stacked.transpose(1, 2)).transpose(0, 1)

    def leading(self, x: Tensor) -> Tensor:
        if takes(self._stacked, x):
            return self(x)
        k = self._stacked.shape[2]
        return torch.cat((self(x[..., :k]), x[..., k:]), dim=-1)

    def dense(self, heads: slice) -> Tensor:
        return self._stacked[heads]


def _in_place(records: Sequence[Tensor]) -> Tensor:
    """[records, ..] without a copy: tensors of one shape that lie equally far apart in one allocation."""
    first = records[0]
    offsets = [record.storage_offset() for record in records]
    apart = offsets[1] - offsets[0] if len(records) > 1 else first.numel()
    assert offsets == [offsets[0] + i * apart for i in range(len(records))]
    return first.as_strided((len(records), *first.shape), (apart, *first.stride()))
