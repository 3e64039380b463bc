"""Measure a heat profile: run text through the model and count what the router chose."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path

import msgspec
import numpy as np

from krasis import __version__
from krasis.errors import InputError
from krasis.heat import imatrix
from krasis.heat.coverage import coverage
from krasis.heat.partial import Partial, TextHeat
from krasis.heat.profile import FORMAT, VERSION, HeatProfile, Text, Tokens, layers_of
from krasis.heat.routing import Routing
from krasis.pack.manifest import Origin
from krasis.pack.reader import Pack
from krasis.runtime.engine import Engine
from krasis.runtime.replay import Chosen, Window, replay

HOLD_OUT = 4
"""Every fourth window of a text is held out of the profile, to score it on."""

TOOL = f"krasis {__version__}"


def measure(
    engine: Engine, texts: Sequence[Iterable[list[int]]], partial: Partial, progress: Callable[[int], None]
) -> list[TextHeat]:
    """Run the windows of every text, each on its own, from where `partial` stands. The engine must trace.

    A window's last tokens, as many as the job decodes, are run one by one after the rest was prefilled, side by side
    with those of other windows, `engine.sequences` in all. What is held out does not count among the moments that the
    engine sums, if it does. Raises KrasisError where the model computes no finite numbers.
    """
    waiting = _waiting(texts, partial, progress)
    while group := list(islice(waiting, engine.sequences)):
        prefilled, decoded = replay(engine, [window for _, window in group], progress)
        for (text, window), prefill, decode in zip(group, prefilled, decoded, strict=True):
            partial.put(text, _with_window(engine, partial.texts[text], window, prefill, decode))
        partial.save_if_due()
    return partial.texts


def check_enough(windows: Sequence[int], size: int, where: str = "") -> None:
    """Raises InputError where no text has so many windows that one of them is held out."""
    if max(windows) < HOLD_OUT:
        expected = f"at least {HOLD_OUT} windows of {size} tokens in a file, one of which is held out"
        raise InputError("too little text for a heat profile", where=where, expected=expected)


def held_out_coverage(texts: Sequence[TextHeat], share: float) -> float:
    """Share of held-out routing that the profile's hottest `share` of experts covers."""
    profile, held_out = (reduce(add, found) for found in ([t.profile for t in texts], [t.held_out for t in texts]))
    return coverage(profile.counts, held_out.counts, share)


def profile_of(engine: Engine, pack: Pack, corpus: Sequence[Origin], texts: Sequence[TextHeat]) -> HeatProfile:
    """What all texts of a corpus gave together."""
    prefill, decode = (reduce(add, found) for found in ([t.prefill for t in texts], [t.decode for t in texts]))
    return HeatProfile(
        format=FORMAT,
        version=VERSION,
        tool=TOOL,
        pack_root=pack.manifest.root,
        model=msgspec.to_builtins(engine.spec),
        corpus=tuple(
            Text(origin.name, origin.bytes, origin.sha256, text.profile.tokens, text.held_out.tokens)
            for origin, text in zip(corpus, texts, strict=True)
        ),
        tokens=Tokens(prefill.tokens, decode.tokens),
        layers=layers_of(prefill, decode),
    )


def save_imatrix(engine: Engine, pack: Pack, corpus: Sequence[Origin], tokens: int, path: Path) -> None:
    """Write the moments that the engine summed over `tokens` tokens of the texts in `corpus`."""
    assert engine.moments is not None
    header = imatrix.Header(
        format=imatrix.FORMAT,
        version=imatrix.VERSION,
        tool=TOOL,
        pack_root=pack.manifest.root,
        model=msgspec.to_builtins(engine.spec),
        corpus=tuple(corpus),
        tokens=tokens,
    )
    imatrix.save(path, header, engine.moments.layers())


def _waiting(
    texts: Sequence[Iterable[list[int]]], partial: Partial, progress: Callable[[int], None]
) -> Iterator[tuple[int, Window]]:
    """Number of a text and window, of all that are still to be run; `progress` is told of the others."""
    for number, text in enumerate(texts):
        done = partial.texts[number].windows
        for i, ids in enumerate(text):
            if i < done:
                progress(len(ids))
            else:
                border = max(len(ids) - partial.job.decode_tokens, 1)
                yield number, Window(ids, border, held=i % HOLD_OUT == HOLD_OUT - 1)


def _with_window(engine: Engine, heat: TextHeat, window: Window, prefilled: Chosen, decoded: Chosen) -> TextHeat:
    """What a text gave, its next window included."""
    assert engine.tracer is not None
    prefill, decode = (Routing.of(*chosen, engine.tracer.experts) for chosen in (prefilled, decoded))
    if not window.held:
        return heat.counted(prefill, decode)
    choices = {layer: np.concatenate([found, decoded[0][layer]]) for layer, found in prefilled[0].items()}
    return heat.held(prefill + decode, choices)
