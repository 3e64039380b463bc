"""How near a mixture-of-experts layer comes to the memory bandwidth of this machine, isolated, on real shapes.

Every call runs one layer for `--tokens` tokens, in one wake of the pool: gate, up, activation, down, weighted sum. The
experts chosen go round more memory than any cache holds. Each round measures every case and a plain read in turn, over
all of that memory; medians over the rounds are printed, as GB/s of weight bytes (codes and scales).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from krasis.native.cpu import Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts
from krasis.pack.anonymous import anonymous


@dataclass(frozen=True)
class Model:
    """Padded sizes of the experts of a layer, and how many a token uses."""

    hidden: int
    size: int
    chosen: int


MODELS = {
    "deepseek-v2-lite": Model(2048, 1408, 6),
    "qwen3-coder-next": Model(2048, 512, 10),
    "gpt-oss-120b": Model(2944, 2944, 4),
    "qwen3-235b-a22b": Model(4096, 1536, 8),
    "qwen3-30b-a3b": Model(2048, 768, 8),
}
BITS = {"int4": 4, "int8": 8, "mxfp4": 4}


def memory(size: int) -> torch.Tensor:
    """Random words in huge pages, where the system gives them.

    Whatever part of them a codec takes for its scales, those are near 1: sums would overflow
    with others, or become subnormal, which takes processors far longer.
    """
    found = anonymous(size).view(torch.int16)
    filled = 1 << 22
    found[:filled] = torch.randint(0x3C, 0x40, (filled,)) << 8 | torch.randint(0x78, 0x80, (filled,))
    while filled < len(found):
        found[filled : 2 * filled] = found[: min(filled, len(found) - filled)]
        filled *= 2
    return found.view(torch.uint8)


class Layer:
    """Experts that go round `data`, every call using the next ones."""

    def __init__(self, pool: Pool, data: torch.Tensor, model: Model, codec: str, layout: str, group: int) -> None:
        group = 32 if codec == "mxfp4" else group
        first: list[Matrix] = []
        at = 0
        for k, n in ((model.hidden, 2 * model.size), (model.size, model.hidden)):
            group_here = next(g for g in (group, 64, 32) if k % g == 0)
            dtype = torch.uint8 if codec == "mxfp4" else torch.bfloat16
            codes, scales = k * n * BITS[codec] // 8, k // group_here * n * dtype.itemsize
            parts = data[at : at + codes], data[at + codes : at + codes + scales].view(dtype)
            first.append(Matrix(codec, layout, k, n, group_here, *parts))
            at += codes + scales
        self.bytes = at
        stride = -(-at // 4096) * 4096
        self.count = len(data) // stride
        self._experts = NativeExperts(
            pool, *first, ExpertShape(self.count, stride, model.hidden, model.size), NativeActivation()
        )
        self._chosen, self._hidden = model.chosen, model.hidden

    def once_round(self, tokens: int) -> int:
        """Use every expert once, or a few less; the weight bytes read."""
        x = torch.randn(tokens, self._hidden)
        weights = torch.rand(tokens, self._chosen)
        calls = self.count // self._chosen
        ids = torch.randperm(self.count)[: calls * self._chosen].view(calls, 1, self._chosen)
        for chosen in ids.expand(-1, tokens, -1).contiguous():
            self._experts(x, chosen, weights)
        return calls * self._chosen * self.bytes


def cases(arguments: argparse.Namespace, pool: Pool) -> Iterator[tuple[str, Callable[[], int]]]:
    """(name, what to time: returns the bytes read)."""
    data = memory(arguments.bytes // 4096 * 4096)

    def read() -> int:
        pool.read(data)
        return len(data)

    yield "read", read
    for name, codec, layout in product(arguments.models, arguments.codecs, arguments.layouts):
        layer = Layer(pool, data, MODELS[name], codec, layout, arguments.group)
        yield f"{name} {codec} {layout}", lambda layer=layer: layer.once_round(arguments.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: one a physical core")
    parser.add_argument("--isa", help="default: the machine's best")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--codecs", nargs="+", choices=BITS, default=["int4", "int8"])
    parser.add_argument("--layouts", nargs="+", choices=("cpu", "marlin"), default=["cpu", "marlin"])
    parser.add_argument("--group", type=int, default=128, help="weights a scale; of mxfp4 always 32")
    parser.add_argument("--tokens", type=int, default=1, help="that use the same experts")
    parser.add_argument("--bytes", type=int, default=2 << 30, help="of memory that experts go round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pool = Pool(arguments.threads, arguments.isa)
    found = list(cases(arguments, pool))
    rates: dict[str, list[float]] = {name: [] for name, _ in found}
    for _ in range(arguments.rounds):
        for name, action in found:
            start = time.perf_counter()
            size = action()
            rates[name].append(size / (time.perf_counter() - start) / 1e9)
    report(pool, rates, as_json=arguments.json)


def report(pool: Pool, rates: dict[str, list[float]], *, as_json: bool) -> None:
    read = statistics.median(rates["read"])
    rows = [
        {
            "case": name,
            "gb_per_s": statistics.median(r),
            "min": min(r),
            "max": max(r),
            "of_read": statistics.median(r) / read,
        }
        for name, r in rates.items()
    ]
    if as_json:
        print(json.dumps({"isa": pool.isa, "threads": pool.threads, "cases": rows}))
        return
    print(f"{pool.threads} threads, {pool.isa}; median (range) GB/s of weight bytes")
    for row in rows:
        spread = f"({row['min']:.1f}-{row['max']:.1f})"
        print(f"{row['case']:34} {row['gb_per_s']:6.1f} {spread:14} {row['of_read']:5.0%} of read")


if __name__ == "__main__":
    main()
