"""Measure a heat profile: run text through the model and count what the router chose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from torch import Tensor

from krasis import __version__
from krasis.errors import InputError
from krasis.heat import imatrix
from krasis.heat.coverage import coverage
from krasis.heat.routing import Counts
from krasis.pack.manifest import Origin
from krasis.pack.reader import Pack
from krasis.runtime.engine import Engine
from krasis.runtime.eval import windows

HOLD_OUT = 4
"""Every fourth window of a text is held out of the profile, to score it on."""


@dataclass
class Measured:
    """Routed tokens of the profile and of the text held out of it."""

    profile: Counts
    held_out: Counts
    tokens: int
    held_out_tokens: int

    def coverage(self, share: float) -> float:
        """Share of held-out routing that the profile's hottest `share` of experts covers."""
        return coverage(self.profile, self.held_out, share)


def measure(engine: Engine, texts: list[list[int]], window: int, progress: Callable[[int], None]) -> Measured:
    """Run every text in windows through prefill. The engine must trace. Raises InputError on too little text.

    What is held out does not count among the moments that the engine sums, if it does.
    """
    assert engine.tracer is not None
    totals, tokens = [_numpy(engine.tracer.take()), _numpy(engine.tracer.take())], [0, 0]
    for text in texts:
        for i, ids in enumerate(windows(text, window)):
            held = i % HOLD_OUT == HOLD_OUT - 1
            if engine.moments is not None:
                engine.moments.active = not held
            engine.all_hidden(ids, engine.new_state())
            for layer, counts in _numpy(engine.tracer.take()).items():
                totals[held][layer] += counts
            tokens[held] += len(ids)
            progress(len(ids))
    if not totals[0]:
        raise InputError("the model has no routed experts")
    if not all(tokens):
        expected = f"at least {HOLD_OUT} windows of {window} tokens in a file, one of which is held out"
        raise InputError("too little text for a heat profile", expected=expected)
    return Measured(totals[0], totals[1], tokens[0], tokens[1])


def save_imatrix(engine: Engine, pack: Pack, corpus: tuple[Origin, ...], tokens: int, path: Path) -> None:
    """Write the moments that the engine summed over `tokens` tokens of the texts in `corpus`."""
    assert engine.moments is not None
    header = imatrix.Header(
        format=imatrix.FORMAT,
        version=imatrix.VERSION,
        tool=f"krasis {__version__}",
        pack_root=pack.manifest.root,
        model=msgspec.to_builtins(engine.spec),
        corpus=corpus,
        tokens=tokens,
    )
    imatrix.save(path, header, engine.moments.layers())


def _numpy(counts: dict[int, Tensor]) -> dict[int, "np.ndarray"]:
    return {layer: np.asarray(found) for layer, found in counts.items()}
