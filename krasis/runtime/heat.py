"""Measure a heat profile: run text through the model and count what the router chose."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import msgspec
import numpy as np

from krasis import __version__
from krasis.errors import InputError, KrasisError
from krasis.heat import imatrix
from krasis.heat.coverage import coverage
from krasis.heat.partial import Partial, TextHeat
from krasis.heat.profile import FORMAT, VERSION, HeatProfile, Text, Tokens, layers_of
from krasis.heat.routing import Choices, Routing
from krasis.pack.manifest import Origin
from krasis.pack.reader import Pack
from krasis.runtime.engine import Engine

HOLD_OUT = 4
"""Every fourth window of a text is held out of the profile, to score it on."""

TOOL = f"krasis {__version__}"


def measure(
    engine: Engine, texts: Sequence[Iterable[list[int]]], partial: Partial, progress: Callable[[int], None]
) -> list[TextHeat]:
    """Run the windows of every text, each on its own, from where `partial` stands. The engine must trace.

    A window's last tokens, as many as the job decodes, are run one by one after the rest was prefilled. What is held
    out does not count among the moments that the engine sums, if it does. Raises KrasisError where the model computes
    no finite numbers.
    """
    with partial:
        for number, text in enumerate(texts):
            done = partial.texts[number].windows
            for i, ids in enumerate(text):
                if i >= done:
                    partial.put(number, _with_window(engine, partial, number, ids))
                progress(len(ids))
    return partial.texts


def check_enough(windows: Sequence[int], size: int, where: str | None = None) -> None:
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


def _with_window(engine: Engine, partial: Partial, number: int, ids: list[int]) -> TextHeat:
    """What a text gave, its next window included."""
    heat = partial.texts[number]
    is_held = heat.windows % HOLD_OUT == HOLD_OUT - 1
    if engine.moments is not None:
        engine.moments.active = not is_held
    prefill, decode, choices = _run(engine, ids, partial.job.decode_tokens)
    return heat.held(prefill + decode, choices) if is_held else heat.counted(prefill, decode)


def _run(engine: Engine, ids: list[int], decoded: int) -> tuple[Routing, Routing, Choices]:
    """What a window's tokens chose in prefill and in decode, of which there are at most `decoded`, and all choices."""
    assert engine.tracer is not None
    state, border = engine.new_state(), max(len(ids) - decoded, 1)
    engine.all_hidden(ids[:border], state)
    prefill, choices = _take(engine)
    if border == len(ids):
        return prefill, Routing.nothing(engine.tracer.experts), choices
    for token in ids[border:]:
        engine.all_hidden([token], state)
    decode, later = _take(engine)
    return prefill, decode, {layer: np.concatenate([found, later[layer]]) for layer, found in choices.items()}


def _take(engine: Engine) -> tuple[Routing, Choices]:
    assert engine.tracer is not None
    choices, weights = engine.tracer.take()
    if not all(np.isfinite(found).all() for found in weights.values()):
        raise KrasisError("the model computes no finite numbers", hint="check the pack: krasis verify PACK")
    return Routing.of(choices, weights, engine.tracer.experts), choices
