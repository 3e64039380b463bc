"""What drafts are worth: tokens a second with --speculate off and auto, in turns, on texts that repeat and on others.

python -m bench.drafts PACK... --text FILE [--tokens 256] [--rounds 5]

Prompts are a part of the text three times over ("quote") and the text as it goes on ("text"); tokens are greedy, or
drawn at temperature 1. They must be the same with drafts. `cost` is the median of auto's time over off's.
"""

import argparse
import time
from pathlib import Path
from statistics import median

from krasis.pack.reader import Pack
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.decode import decode
from krasis.runtime.drafts import Drafter
from krasis.runtime.engine import Engine
from krasis.runtime.sampler import Sampler, Sampling
from krasis.runtime.tokenizer import Tokenizer

PART = 150
SAMPLINGS = {"greedy": Sampling(), "drawn": Sampling(temperature=1.0, seed=1)}


def timed(
    engine: Engine, prompt: list[int], sampling: Sampling, count: int, drafter: Drafter | None
) -> tuple[list[int], float]:
    """Tokens, and seconds of all but the first."""
    tokens = decode(engine, prompt, engine.new_state(), Sampler(sampling), most=count, drafter=drafter)
    first, begin = next(tokens), time.perf_counter()
    found = [first, *tokens]
    return found, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    backend, text = CpuBackend(args.threads), args.text.read_text(encoding="utf-8")
    print(f"{'pack':<12} {'prompt':<6} {'tokens':<6} {'off':>7} {'auto':>7} {'cost':>6} {'drafted':>8} {'right':>6}")
    for path in args.packs:
        pack = Pack(path)
        ids = Tokenizer(pack).encode(text)
        engine = Engine(pack, backend, context=3 * PART + args.tokens)
        for name, prompt in {"quote": 3 * ids[:PART], "text": ids[: 3 * PART]}.items():
            for kind, sampling in SAMPLINGS.items():
                off, auto = [], []
                for _ in range(args.rounds + 1):
                    expected, seconds = timed(engine, prompt, sampling, args.tokens, None)
                    off.append(seconds)
                    drafter = Drafter(engine.costs)
                    found, seconds = timed(engine, prompt, sampling, args.tokens, drafter)
                    auto.append(seconds)
                    if found != expected:
                        raise SystemExit(f"{path}: drafts change what is said")
                # The first round warms.
                off, auto = off[1:], auto[1:]
                cost = median(b / a for a, b in zip(off, auto, strict=True))
                speeds = " ".join(f"{(args.tokens - 1) / median(times):7.1f}" for times in (off, auto))
                figures = f"{speeds} {cost:6.3f} {drafter.drafted:8} {drafter.accepted:6}"
                print(f"{path.name:<12} {name:<6} {kind:<6} {figures}", flush=True)


if __name__ == "__main__":
    main()
