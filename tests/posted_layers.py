"""Small layers of experts whose posts are answered, and what the answers are to be."""

import torch
from native_reference import ISAS, pool
from torch import Tensor

from krasis.native.cpu import Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts

EXPERTS, SIZE, GROUP = 12, 64, 32


def workers() -> Pool:
    return pool(2, ISAS[-1])


def random_layer(seed: int, hidden: int, workers: Pool, size: int = SIZE, inner: int | None = None) -> NativeExperts:
    """INT8 experts on `hidden` features, a multiple of 64, with `size` of their own: the first `inner` count."""
    generator = torch.Generator().manual_seed(seed)
    shapes, parts = ((hidden, 2 * size), (size, hidden)), []
    for k, n in shapes:
        parts.append(torch.randint(0, 256, (EXPERTS, k * n), dtype=torch.uint8, generator=generator))
        scales = torch.randn(EXPERTS, k // GROUP * n, generator=generator) / 1000
        parts.append(scales.bfloat16().view(torch.uint8))
    records = torch.cat(parts, 1)
    arrays = torch.split(records[0], [part.shape[1] for part in parts])
    w13, w2 = (
        Matrix("int8", "marlin", k, n, GROUP, arrays[2 * i], arrays[2 * i + 1].view(torch.bfloat16))
        for i, (k, n) in enumerate(shapes)
    )
    shape = ExpertShape(EXPERTS, records.shape[1], hidden, inner or size)
    return NativeExperts(workers, w13, w2, shape, NativeActivation())


def random_post(seed: int, tokens: int, chosen: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [tokens, hidden], ids int32 and weights [tokens, chosen]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:chosen] for _ in range(tokens)])
    x = torch.randn(tokens, hidden, generator=generator)
    return x, ids.int(), torch.rand(tokens, chosen, generator=generator)


def expected(layer: NativeExperts, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """What krasis_moe gives each token for its pairs that are not -1."""
    rows = torch.zeros_like(x)
    for token in range(len(x)):
        kept = ids[token] >= 0
        if kept.any():
            one = slice(token, token + 1)
            rows[one] = layer(x[one], ids[one, kept].long(), weights[one, kept])
    return rows
