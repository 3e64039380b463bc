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
from functools import partial
from itertools import product

import torch

from krasis.native.cpu import Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts
from krasis.pack.anonymous import anonymous


@dataclass(frozen=True)
class Model:
    """Padded sizes of the experts of a layer, how many there are and how many a token uses."""

    hidden: int
    size: int
    experts: int
    chosen: int


MODELS = {
    "deepseek-v2-lite": Model(2048, 1408, 64, 6),
    "qwen3-coder-next": Model(2048, 512, 512, 10),
    "gpt-oss-120b": Model(2944, 2944, 128, 4),
    "qwen3-235b-a22b": Model(4096, 1536, 128, 8),
    "qwen3-30b-a3b": Model(2048, 768, 128, 8),
}
READ = 512 << 20
"""Bytes of a plain read: long enough that a call costs nothing beside it."""
BITS = {"int4": 4, "int8": 8, "mxfp4": 4}


def memory(size: int) -> torch.Tensor:
    """Random words in huge pages, where the system gives them.

    Whatever part of them a codec takes for its scales, those make sums as models have them, about 1 to 10: activations
    of others overflow or become subnormal, which takes processors far longer.
    """
    found = anonymous(size).view(torch.int16)
    filled = 1 << 22
    found[:filled] = torch.randint(0x70, 0x80, (filled,)) | 0x3B00
    while filled < len(found):
        found[filled : 2 * filled] = found[: min(filled, len(found) - filled)]
        filled *= 2
    return found.view(torch.uint8)


def matrices(model: Model, codec: str, layout: str, group: int, data: torch.Tensor) -> tuple[Matrix, Matrix, int]:
    """w13 and w2 of an expert whose record `data` begins with, and the bytes of that."""
    found: list[Matrix] = []
    at = 0
    for k, n in ((model.hidden, 2 * model.size), (model.size, model.hidden)):
        size = 32 if codec == "mxfp4" else next(g for g in (group, 64, 32) if k % g == 0)
        dtype = torch.uint8 if codec == "mxfp4" else torch.bfloat16
        codes, scales = k * n * BITS[codec] // 8, k // size * n * dtype.itemsize
        parts = data[at : at + codes], data[at + codes : at + codes + scales].view(dtype)
        found.append(Matrix(codec, layout, k, n, size, *parts))
        at += codes + scales
    return found[0], found[1], at


Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """`round` gives calls to time, each of which reads `bytes`."""

    name: str
    bytes: int
    round: Callable[[], list[Call]]


def layers(pool: Pool, data: torch.Tensor, name: str, codec: str, layout: str, arguments: argparse.Namespace) -> Case:
    """Calls of as many layers as `data` holds, which use every expert once, or a few less."""
    model = MODELS[name]
    *_, size = matrices(model, codec, layout, arguments.group, data)
    stride = -(-size // 4096) * 4096
    count = min(model.experts, len(data) // stride)
    shape = ExpertShape(count, stride, model.hidden, model.size)
    records = data[: len(data) // (count * stride) * count * stride].view(-1, count * stride)
    found = [
        NativeExperts(pool, *matrices(model, codec, layout, arguments.group, layer)[:2], shape, NativeActivation())
        for layer in records
    ]
    x, weights = torch.randn(arguments.tokens, model.hidden), torch.rand(arguments.tokens, model.chosen)
    y = torch.empty_like(x)

    def one_round() -> list[Call]:
        calls: list[Call] = []
        for experts in found:
            used = torch.randperm(count)[: count // model.chosen * model.chosen].view(-1, 1, model.chosen)
            for chosen in used.expand(-1, arguments.tokens, -1).contiguous():
                calls.append(experts.bind(x, chosen, weights, y))
        return calls

    return Case(f"{name} {codec} {layout}", model.chosen * size, one_round)


def cases(arguments: argparse.Namespace, pool: Pool) -> Iterator[Case]:
    data = memory(arguments.bytes // READ * READ)
    yield Case("read", READ, lambda: [partial(pool.read, part) for part in data.view(-1, READ)])
    for name, codec, layout in product(arguments.models, arguments.codecs, arguments.layouts):
        yield layers(pool, data, name, codec, layout, arguments)


def rate(case: Case) -> float:
    """GB/s in the median call of a round."""
    times = []
    for call in case.round():
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return case.bytes / statistics.median(times) / 1e9


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
    rates: dict[str, list[float]] = {case.name: [] for case in found}
    for _ in range(arguments.rounds):
        for case in found:
            rates[case.name].append(rate(case))
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
