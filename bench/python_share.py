"""What Python takes of a token that the CPU decodes: with layers run one by one, and replayed as one.

python -m bench.python_share PACK.. [--context N] [--tokens N] [--threads N..] [--ms MS]

Both ways are timed by turns, and of each the best token counts. What native calls take is timed within replayed tokens;
the rest is Python, with torch: embedding, angles, the call of the head, and, one by one, all that lies between calls of
a layer. `--ms` relates this to a token of a larger model of as many layers, that takes so long in all.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from krasis.native.tape import Tape
from krasis.pack.reader import Pack
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.engine import Engine

ROUNDS = 10


class Native:
    """Seconds in native calls, summed where `Pool.call` and `Tape.replay` make them."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        pool = engine.backend.pool  # type: ignore[attr-defined]
        pool.call = self._timed(pool.call)
        Tape.replay = self._timed(Tape.replay)  # type: ignore[method-assign]

    def _timed(self, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return run


def best_token(engine: Engine, state: Any, tokens: int, native: Native | None) -> tuple[float, float]:
    """(microseconds, of these native) of the fastest of so many."""
    found = []
    for _ in range(tokens):
        before, started = native.seconds if native else 0.0, time.perf_counter()
        engine.step([1], state)
        took = time.perf_counter() - started
        found.append((1e6 * took, 1e6 * (native.seconds - before) if native else 0.0))
    return min(found)


def show(path: Path, threads: int, args: argparse.Namespace) -> None:
    pack = Pack(path)
    engine = Engine(pack, CpuBackend(threads), context=args.context + ROUNDS * 3 * args.tokens)
    whole, (replayed,) = engine.model.blocks, engine.model.blocks
    state = engine.new_state()
    engine.last_logits([1] * args.context, state)
    engine.step([1], state)
    if replayed.unrecorded:  # type: ignore[attr-defined]
        raise SystemExit(f"{path.name} is not replayed: {replayed.unrecorded}")  # type: ignore[attr-defined]
    ways = {"layers": replayed.blocks, "replayed": whole}  # type: ignore[attr-defined]
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for way, blocks in ways.items():
            engine.model.blocks = blocks
            best[way] = min(best[way], best_token(engine, state, args.tokens, None)[0])
    replay, native = Tape.replay, Native(engine)
    native_us = min(best_token(engine, state, args.tokens, native) for _ in range(ROUNDS))[1]
    Tape.replay = replay  # type: ignore[method-assign]
    layers = engine.spec.num_layers
    for way, us in best.items():
        python = us - native_us
        related = f" {python / (1e3 * args.ms):7.1%}" if args.ms else ""
        each = f"{python:8.1f} {python / layers:8.1f} {python / us:7.1%}"
        print(f"{path.name:<24} {threads:>7} {layers:>6} {way:<9} {us:9.1f} {native_us:9.1f} {each}{related}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=30, help="of each round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ms", type=float, help="of another token")
    args = parser.parse_args()
    heads = ("native", "Python", "a layer", "share")
    print(f"{'us a token':<24} {'threads':>7} {'layers':>6} {'':<9} {'whole':>9} ", end="")
    print("{:>9} {:>8} {:>8} {:>7}".format(*heads), f"{f'of {args.ms:g} ms':>7}" if args.ms else "")
    torch.set_num_threads(1)
    for path in args.packs:
        for threads in args.threads:
            show(path, threads, args)


if __name__ == "__main__":
    main()
