"""Where does a token's time go? A pack's decode by variant, and what each kernel of a token takes.

python -m bench.decode PACK [--vram GIB] [--context N] [--tokens N] [--runs N] [--threads N]

Variants: every expert cold, computed by the CPU, read over PCIe by the GPU, or divided between them; then with the
plan's residents, which stay, or follow the text. `by CPU` is its share of missed bytes. Each continues a prompt of
`--context` tokens. The profile counts kernels of the last variant's tokens; what waits for the CPU is in `wait_add`,
and what no kernel fills is idle.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from krasis.heat import profile as heat_profile
from krasis.models.conform import read_spec
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime import bench as benching
from krasis.runtime.cuda.division import Divide, division
from krasis.runtime.cuda.engine import PROMPT, CudaEngine
from krasis.runtime.cuda.figures import Traffic
from krasis.runtime.cuda.residents import Residency
from krasis.runtime.measure import measure
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import Plan, Wishes, plan, with_residents
from krasis.runtime.rates import Rates

PROFILED = 32
"""Tokens."""


def by_cpu(most: int, size: int, parts: int, rates: Rates, passing: float) -> list[int]:
    return [parts] * (most + 1)


def by_gpu(most: int, size: int, parts: int, rates: Rates, passing: float) -> list[int]:
    return [0] * (most + 1)


VARIANTS: dict[str, tuple[bool, Divide, Residency]] = {
    "all cold, by the CPU": (False, by_cpu, "static"),
    "all cold, over PCIe": (False, by_gpu, "static"),
    "all cold, divided": (False, division, "static"),
    "residents, CPU": (True, by_cpu, "static"),
    "residents, divided": (True, division, "static"),
    "following, divided": (True, division, "follow"),
}


class Bench:
    """What all variants share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.pack, self.args, self.rates = Pack(args.pack), args, measure()
        self.ids, _ = benching.workload(self.pack, read_spec(self.pack).vocab_size, args.context + args.tokens)
        found = outline(self.pack.manifest)
        names = heat_profile.names_in(self.pack.path)
        heat = heat_profile.load(self.pack.path, names[0], self.pack.manifest).routing() if names else None
        wishes = Wishes((int(args.vram * 2**30),), len(self.ids), "fp8", PROMPT)
        self.planned = plan(found, self.rates, heat, wishes)
        self.cold = with_residents(self.planned, found, 0.0)

    def engine(self, placement: Plan, divide: Divide, residency: Residency) -> CudaEngine:
        budget, kv = placement.devices[0].budget, placement.wishes.kv
        return CudaEngine(
            self.pack,
            torch.device("cuda", 0),
            context=len(self.ids),
            vram=budget,
            kv=kv,
            threads=self.args.threads,
            rates=self.rates,
            placement=placement,
            divide=divide,
            residency=residency,
        )

    def run(self, engine: CudaEngine, between: Callable[[], object] = lambda: None) -> benching.Run:
        return benching.run(engine, self.ids, self.args.context, Silent(), between)

    def variant(self, name: str) -> CudaEngine:
        """Prints a row; the engine is left open."""
        resident, divide, residency = VARIANTS[name]
        engine = self.engine(self.planned if resident else self.cold, divide, residency)
        self.run(engine)
        before: list[Traffic] = []
        runs = [self.run(engine, lambda: before.append(engine.traffic())) for _ in range(self.args.runs)]
        moved = engine.traffic() - before[-1]
        ms = sorted(1e3 * found.decode_s / found.decoded for found in runs)
        hits, on_cpu = moved.hit_rate or 0.0, moved.cpu_read / max(moved.missed * engine.expert_bytes, 1)
        cpu_us = 1e6 * moved.cpu_s / runs[-1].decoded / len(engine.experts_of)
        middle, speed = statistics.median(ms), 1e3 / statistics.median(ms)
        print(
            f"{name:<22} {middle:7.2f} {ms[0]:7.2f} {ms[-1]:7.2f} {speed:8.1f} {hits:6.1%} {on_cpu:7.1%} {cpu_us:8.1f}",
            flush=True,
        )
        return engine

    def profile(self, engine: CudaEngine) -> None:
        """Kernels of a token, by name."""
        state = engine.new_state()
        engine.last_logits(self.ids[: self.args.context], state)
        tail = self.ids[self.args.context :][:PROFILED]
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for token in tail:
                int(engine.last_logits([token], state).argmax())
        kernels = [event for event in found.key_averages() if event.device_type == DeviceType.CUDA]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in kernels) / len(tail)
        nodes = sum(event.count for event in kernels) / len(tail)
        print(f"\nof a token: {nodes:.0f} kernels and copies, {total / 1e3:.2f} ms\n{'us':>9} {'count':>7} {'each':>7}")
        for event in kernels:
            took, count = event.self_device_time_total / len(tail), event.count / len(tail)
            if took >= total / 1000:
                print(f"{took:9.1f} {count:7.1f} {took / count:7.2f}  {event.key[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--vram", type=float, default=16, help="GiB")
    parser.add_argument("--context", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    bench = Bench(args)
    heads = ("median", "least", "most", "tok/s", "hits", "by CPU", "CPU us")
    print("{:<22} {:>7} {:>7} {:>7} {:>8} {:>6} {:>7} {:>8}".format("ms a token", *heads))
    for name in args.variants:
        engine = bench.variant(name)
        if name == args.variants[-1]:
            bench.profile(engine)
        engine.close()
        del engine
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
