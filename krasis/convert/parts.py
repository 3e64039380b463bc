"""Some rows of a padded tensor: each of its parts lies at the start of an equal share of the rows, zeros after it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from krasis.pack.record import TensorSpec


def covered(padded_rows: int, parts: Sequence[Tensor], rows: range) -> Iterator[tuple[slice, Tensor]]:
    """What of `rows`, as slices of the padded tensor's, the parts cover, and the parts' own rows there."""
    share = padded_rows // len(parts)
    for number, part in enumerate(parts):
        begin = number * share
        some = range(max(begin, rows.start), min(begin + len(part), rows.stop))
        if some:
            yield slice(some.start, some.stop), part[some.start - begin : some.stop - begin]


def padded(spec: TensorSpec, parts: Sequence[Tensor], rows: range) -> Tensor:
    """float32 [len(rows), ...]: `rows` of the padded tensor, columns padded too."""
    whole = torch.zeros(len(rows), *spec.padded_shape[1:])
    for at, part in covered(spec.padded_shape[0], parts, rows):
        whole[at.start - rows.start : at.stop - rows.start][..., : part.shape[-1]] = part
    return whole
