"""What Python takes of a token that the CPU decodes: with layers run one by one, and replayed as one.

python -m bench.python_share PACK.. [--context N] [--tokens N] [--threads N..] [--like LAYERS MS]

Both ways are timed by turns, the best of all tokens counts. Native calls are timed within replayed tokens; the rest is
Python, with torch: embedding, angles, the call of the head, and, one by one, all that lies between calls of a layer.
`--like` relates it to a larger model: of so many layers, a token of which takes so long in all.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from krasis.native.cpu import Pool
from krasis.native.tape import Tape
from krasis.pack.reader import Pack
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.engine import Engine
from krasis.runtime.recorded import Recorded
from krasis.runtime.state import SequenceState

ROUNDS = 10


class Native:
    """Seconds in native calls, summed where `Pool.call` and `Tape.replay` make them while this is entered."""

    def __init__(self, pool: Pool) -> None:
        self.seconds, self._pool = 0.0, pool

    def __enter__(self) -> "Native":
        self._found = self._pool.call, Tape.replay
        self._set(*map(self._timed, self._found))
        return self

    def __exit__(self, *_: object) -> None:
        self._set(*self._found)

    def _set(self, call: Any, replay: Any) -> None:
        self._pool.call, Tape.replay = call, replay  # type: ignore[method-assign]

    def _timed(self, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return run


def token_us(engine: Engine, state: SequenceState) -> float:
    started = time.perf_counter()
    engine.step([1], state)
    return 1e6 * (time.perf_counter() - started)


def show(path: Path, threads: int, args: argparse.Namespace) -> None:
    backend = CpuBackend(threads)
    engine = Engine(Pack(path), backend, context=args.context + 1 + 2 * ROUNDS * args.tokens)
    (replayed,) = engine.model.blocks
    assert isinstance(replayed, Recorded)
    state, native = engine.new_state(), Native(backend.pool)
    engine.last_logits([1] * args.context, state)
    engine.step([1], state)
    if replayed.unrecorded:
        raise SystemExit(f"{path.name} is not replayed: {replayed.unrecorded}")
    whole, inside, outside, by_layers = [], [], [], []
    for _ in range(ROUNDS):
        engine.model.blocks = replayed.blocks
        by_layers += [token_us(engine, state) for _ in range(args.tokens)]
        engine.model.blocks = [replayed]
        with native:
            for _ in range(args.tokens):
                native.seconds = 0
                whole.append(token_us(engine, state))
                inside.append(1e6 * native.seconds)
                outside.append(whole[-1] - inside[-1])
    layers, wide = engine.spec.num_layers, args.like[0] if args.like else 1
    each = (min(by_layers) - min(inside)) / layers
    for way, us, python, like in (
        ("layers", min(by_layers), each * layers, each * wide),
        ("replayed", min(whole), min(outside), min(outside)),
    ):
        figures = [us, us - python, python, python / layers]
        related = f" {like / (1e3 * args.like[1]):8.1%}" if args.like else ""
        print(f"{path.name:<20} {threads:>7} {way:<9} " + " ".join(f"{figure:8.1f}" for figure in figures) + related)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=30, help="of each round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--like", type=float, nargs=2, metavar=("LAYERS", "MS"))
    args = parser.parse_args()
    heads = ("token", "native", "Python", "a layer", *(["like"] if args.like else []))
    print(f"{'us':<20} threads {'':<9} " + " ".join(f"{head:>8}" for head in heads))
    torch.set_num_threads(1)
    for path in args.packs:
        for threads in args.threads:
            show(path, threads, args)


if __name__ == "__main__":
    main()
