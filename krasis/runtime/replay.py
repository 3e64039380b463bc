"""Run windows of text through the model, their ends token by token, and note what the router chose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krasis.errors import KrasisError
from krasis.heat.routing import Choices, ChoiceWeights
from krasis.runtime.engine import Engine
from krasis.runtime.state import SequenceState

Chosen = tuple[Choices, ChoiceWeights]
"""Of some tokens: experts, and their routing weights."""


@dataclass(frozen=True)
class Window:
    """Token ids, of which all from `border` on, 1 or more, are decoded. What is `held` out counts in no moments."""

    ids: list[int]
    border: int
    held: bool


def replay(
    engine: Engine, windows: Sequence[Window], progress: Callable[[int], None]
) -> tuple[list[Chosen], list[Chosen]]:
    """What each window's tokens chose in prefill and in decode, which all windows do together. The engine must trace.

    Raises KrasisError where the model computes no finite numbers.
    """
    assert engine.tracer is not None
    # A replay that was interrupted leaves something behind.
    engine.tracer.forget()
    states = [engine.new_state() for _ in windows]
    prefilled = []
    for window, state in zip(windows, states, strict=True):
        _count(engine, window)
        engine.all_hidden(window.ids[: window.border], state)
        prefilled.append(_take(engine))
        progress(window.border)
    decoded = [_part(chosen, slice(0)) for chosen in prefilled]
    for some in _batches(engine, windows):
        batch = [windows[i] for i in some]
        _count(engine, batch[0])
        found = _decode(engine, [window.ids[window.border :] for window in batch], [states[i] for i in some], progress)
        for i, chosen in zip(some, found, strict=True):
            decoded[i] = chosen
    return prefilled, decoded


def _batches(engine: Engine, windows: Sequence[Window]) -> list[list[int]]:
    """Which windows are decoded together, those left out that have nothing to decode."""
    some = [i for i, window in enumerate(windows) if window.border < len(window.ids)]
    if engine.moments is None:
        return [some] if some else []
    apart = [[i for i in some if windows[i].held == held] for held in (False, True)]
    return [batch for batch in apart if batch]


def _decode(
    engine: Engine, ends: Sequence[list[int]], states: Sequence[SequenceState], progress: Callable[[int], None]
) -> list[Chosen]:
    """What each sequence chose on the way to its end. Those that are there wait no longer for the others."""
    rows: list[int] = []
    for step in range(max(map(len, ends))):
        going = [i for i, end in enumerate(ends) if step < len(end)]
        engine.next_hidden([ends[i][step] for i in going], [states[i] for i in going])
        rows += going
        progress(len(going))
    chosen, sequence = _take(engine), np.array(rows)
    return [_part(chosen, sequence == i) for i in range(len(ends))]


def _count(engine: Engine, window: Window) -> None:
    if engine.moments is not None:
        engine.moments.active = not window.held


def _take(engine: Engine) -> Chosen:
    assert engine.tracer is not None
    choices, weights = engine.tracer.take()
    if not all(np.isfinite(found).all() for found in weights.values()):
        raise KrasisError("the model computes no finite numbers", hint="check the pack: krasis verify PACK")
    return choices, weights


def _part(chosen: Chosen, rows: slice | NDArray[np.bool_]) -> Chosen:
    """Some tokens of it."""
    choices, weights = chosen
    return {k: v[rows] for k, v in choices.items()}, {k: v[rows] for k, v in weights.items()}
