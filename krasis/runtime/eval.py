"""Loss on text, by the prefill path or token by token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from krasis.runtime.engine import Engine

Path = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Loss:
    """Summed negative log likelihood in nats over `tokens` scored tokens."""

    total: float
    tokens: int

    @property
    def nll(self) -> float:
        return self.total / self.tokens

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.total + other.total, self.tokens + other.tokens)


def windows(ids: list[int], size: int) -> Iterator[list[int]]:
    """Consecutive windows; a last one too short to score is dropped."""
    for start in range(0, len(ids) - 1, size):
        window = ids[start : start + size]
        if len(window) > 1:
            yield window


def window_loss(engine: Engine, ids: list[int], path: Path) -> Loss:
    """Score a window on its own: every token but the first, given those before it."""
    state = engine.new_state()
    if path == "prefill":
        logits = engine.all_logits(ids[:-1], state)
    else:
        logits = torch.stack([engine.last_logits([token], state) for token in ids[:-1]])
    total = functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
    return Loss(total, len(ids) - 1)


def text_loss(engine: Engine, ids: list[int], size: int, path: Path, progress: Callable[[int], None]) -> Loss:
    """The loss over all windows of a text; `progress` is called with tokens as they are scored."""
    loss = Loss(0.0, 0)
    for window in windows(ids, size):
        loss += window_loss(engine, window, path)
        progress(len(window))
    return loss
