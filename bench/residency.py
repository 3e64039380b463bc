"""What do residents that follow the text hit, beside residents that stay and a cache that is renewed after every token?

python -m bench.residency [--model CHECKPOINT...] [--text FILE...] [--layers N]

Replayed on what routers chose, of checkpoints on text that no profile saw, and made up: 512 experts in each of 48
layers, 10 of them a token, with a skew of 0.9. Hits are shares of pairs of a token and an expert, `no prompts` those
of following decoded tokens alone; what is exchanged is a share of what misses move.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from krasis.convert.pipeline import Conversion
from krasis.heat.caches import Keys, Lfu
from krasis.heat.following import Following, replay
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime.devices import open_backend
from krasis.runtime.engine import Engine
from krasis.runtime.tokenizer import Tokenizer
from krasis.synth.routing import Router

EXAMPLES = Path(__file__).parents[1] / "examples"
TOKENS, WINDOW, PROFILED = 8192, 512, 6144
"""Of each text, and how many of them profiles know."""

MADE_UP = 2048
SHARES = (0.25, 0.5)

Rates = NDArray[np.float64]
Turns = list[tuple[Keys, Keys]]
"""Prompts and the tokens decoded after them."""


@dataclass(frozen=True)
class Replayed:
    """Hits of each policy, and experts exchanged a miss."""

    static: float
    follow: float
    unprompted: float
    lfu: float
    exchanged: float


def traces(model: Path, texts: list[Path]) -> tuple[int, dict[str, Keys]]:
    """How many experts a checkpoint has in all, and what it chooses for each text."""
    settings = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin",))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model.name
        Conversion(model, settings, None, None).run(path, Silent(), jobs=1)
        pack = Pack(path)
        engine, tokenizer = Engine(pack, open_backend("cpu", None)[0], context=WINDOW, trace=True), Tokenizer(pack)
        return sum(engine.tracer.experts.values()), {text.stem: _trace(engine, tokenizer, text) for text in texts}


def _trace(engine: Engine, tokenizer: Tokenizer, text: Path) -> Keys:
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))[:TOKENS]
    for first in range(0, len(ids), WINDOW):
        engine.all_hidden(ids[first : first + WINDOW], engine.new_state())
    choices, _ = engine.tracer.take()
    before, keys = 0, []
    for layer, experts in engine.tracer.experts.items():
        keys.append(choices[layer] + before)
        before += experts
    return np.concatenate(keys, axis=1)


def rates_of(experts: int, keys: list[Keys]) -> Rates:
    return np.bincount(np.concatenate(keys).ravel(), minlength=experts) / sum(map(len, keys))


def replayed(rates: Rates, share: float, turns: Turns) -> Replayed:
    resident = np.zeros(len(rates), np.bool_)
    resident[np.argsort(-rates, kind="stable")[: round(share * len(rates))]] = True
    decoded = np.concatenate([decoded for _, decoded in turns])
    found = {counts: _follow(rates, resident, turns, counts=counts) for counts in (True, False)}
    hits, exchanged = found[True]
    lfu = Lfu(len(rates), [int(resident.sum())], rates)
    by_lfu = []
    for prompt, after in turns:
        if len(prompt):
            lfu.replay(prompt)
        by_lfu.append(lfu.replay(after)[0])
    return Replayed(
        float(resident[decoded].mean()),
        float(hits.mean()),
        float(found[False][0].mean()),
        float(np.concatenate(by_lfu).mean()),
        exchanged / max(1, (~hits).sum()),
    )


def _follow(rates: Rates, resident: NDArray[np.bool_], turns: Turns, *, counts: bool) -> tuple[NDArray[np.bool_], int]:
    policy, hits, exchanged = Following(np.ones(len(rates), np.int64), resident, rates), [], 0
    for prompt, decoded in turns:
        if counts and len(prompt):
            policy.saw(np.bincount(prompt.ravel(), minlength=len(rates)), len(prompt), together=True)
            exchanged += len(policy.exchange()[0])
        found, more = replay(policy, decoded)
        hits.append(found)
        exchanged += more
    return np.concatenate(hits), exchanged


def show(name: str, share: float, found: Replayed) -> None:
    figures = f"{found.static:8.3f} {found.follow:8.3f} {found.unprompted:10.3f} {found.lfu:8.3f}"
    print(f"{name:<46} {share:5.2f} {figures} {found.exchanged:10.4f}", flush=True)


def conversations(keys: dict[str, Keys], prompt: int, decoded: int) -> Turns:
    """From one text after the other, from what is held out of profiles."""
    turns = []
    for first in range(PROFILED, TOKENS - prompt - decoded + 1, prompt + decoded):
        middle = first + prompt
        turns += [(found[first:middle], found[middle : middle + decoded]) for found in keys.values()]
    return turns


def of_checkpoint(model: Path, texts: list[Path]) -> None:
    experts, keys = traces(model, texts)
    names = list(keys)
    nothing, held = keys[names[0]][:0], {name: found[PROFILED:] for name, found in keys.items()}
    profile = {name: rates_of(experts, [found[:PROFILED]]) for name, found in keys.items()}
    every = rates_of(experts, [found[:PROFILED] for found in keys.values()])
    parts = [held[name][i : i + WINDOW] for i in range(0, TOKENS - PROFILED, WINDOW) for name in names]
    cases: dict[str, tuple[Rates, Turns]] = {"all texts in turn": (every, [(nothing, part) for part in parts])}
    for name in (names[0], names[-1]):
        cases[f"{names[0]} -> {name}"] = (profile[names[0]], [(nothing, held[name])])
    for prompt, decoded in ((64, 128), (512, 128)):
        cases[f"turns of {prompt} + {decoded} tokens"] = (every, conversations(keys, prompt, decoded))
    for name, (rates, turns) in cases.items():
        for share in SHARES:
            show(f"{model.name}, {name}", share, replayed(rates, share, turns))


def made_up(layers: int) -> None:
    for name, drift in (("as it is", 0.0), ("half drifts in 1,400 tokens", 1 / 2048), ("in 350 tokens", 1 / 512)):
        router = Router(512, layers, 10, 0.9, drift, seed=0)
        rates = router.rates
        keys = router.choose(MADE_UP)
        for share in SHARES:
            show(f"512 x {layers} made up, {name}", share, replayed(rates, share, [(keys[:0], keys)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="*", default=sorted((EXAMPLES / "models").iterdir()))
    parser.add_argument("--text", type=Path, nargs="*", default=sorted((EXAMPLES / "text").glob("dev-*.txt")))
    parser.add_argument("--layers", type=int, default=48)
    options = parser.parse_args()
    header = f"{'static':>8} {'follow':>8} {'no prompts':>10} {'LFU':>8} {'exchanged':>10}"
    print(f"{'profile -> text':<46} {'share':>5} {header}")
    for model in options.model:
        of_checkpoint(model, options.text)
    made_up(options.layers)


if __name__ == "__main__":
    main()
