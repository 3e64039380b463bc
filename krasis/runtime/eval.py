"""Loss on text, by the prefill path or token by token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from krasis.runtime.engine import Engine

SCORED_AT_ONCE = 64

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
    seen, expected = ids[:-1], torch.tensor(ids[1:])
    if path == "prefill":
        hidden = engine.all_hidden(seen, state)
    else:
        hidden = torch.cat([engine.all_hidden([token], state) for token in seen])
    # A window's logits may outweigh all else in memory, so they are made and scored a few tokens at a time.
    total = 0.0
    for start in range(0, len(seen), SCORED_AT_ONCE):
        part = slice(start, start + SCORED_AT_ONCE)
        total += functional.cross_entropy(engine.logits(hidden[part]), expected[part], reduction="sum").item()
    return Loss(total, len(seen))


def text_loss(engine: Engine, ids: list[int], size: int, path: Path, progress: Callable[[int], None]) -> Loss:
    """The loss over all windows of a text; `progress` is called with tokens as they are scored."""
    loss = Loss(0.0, 0)
    for window in windows(ids, size):
        loss += window_loss(engine, window, path)
        progress(len(window))
    return loss
