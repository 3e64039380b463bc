"""A sum whose rounding is the same on every machine and for every number of threads."""

from torch import Tensor


def tree_sum(values: Tensor) -> Tensor:
    """float [A, B, C] -> [A, 1, C], adding halves until one is left. Overwrites `values`; B is at least 1."""
    while (width := values.shape[1]) > 1:
        half = width // 2
        if width % 2:
            values[:, :1] += values[:, -1:]
        values = values[:, :half].add_(values[:, half : 2 * half])
    return values
