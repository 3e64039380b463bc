"""Measure a pack on a GPU: what moved over which path, and what the plan allows at the rates of the same minutes."""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch

from krasis.pack.progress import Progress
from krasis.runtime.bench import Run, run
from krasis.runtime.cuda.engine import CudaEngine
from krasis.runtime.cuda.figures import Traffic

WARM = 1
"""Runs that count for nothing: kernels are loaded, and libraries choose theirs."""


@dataclass(frozen=True)
class HybridRun:
    """A run, and what moved for its prompt and for the tokens after it."""

    run: Run
    prefill: Traffic
    decode: Traffic


@dataclass(frozen=True)
class HybridMeasured:
    """Runs, and bytes of the device that were taken when they ended, the process' context included."""

    runs: list[HybridRun]
    used: int


def decode_traffic(runs: list[HybridRun]) -> Traffic:
    """Of all tokens that were decoded."""
    return reduce(add, (found.decode for found in runs))


def waited_s(runs: list[HybridRun]) -> float:
    """Seconds that a token waited for the CPU."""
    return decode_traffic(runs).waited_s / sum(found.run.decoded for found in runs)


def measure(
    engine: CudaEngine, ids: list[int], prompt: int, runs: int, progress: Progress, *, drafts: bool
) -> HybridMeasured:
    """Run `ids` so often: the first `prompt` at once, then the others one by one, each followed by a greedy choice.

    Raises KrasisError for logits that are not finite.
    """
    progress.start("measuring", (runs + WARM) * len(ids))
    found = [_run(engine, ids, prompt, progress, drafts=drafts) for _ in range(runs + WARM)][WARM:]
    free, total = torch.cuda.mem_get_info(engine.device)
    return HybridMeasured(found, total - free)


def _run(engine: CudaEngine, ids: list[int], prompt: int, progress: Progress, *, drafts: bool = False) -> HybridRun:
    seen = [engine.traffic()]
    found = run(engine, ids, prompt, progress, lambda: seen.append(engine.traffic()), drafts=drafts)
    before, between, after = *seen, engine.traffic()
    return HybridRun(found, between - before, after - between)


@dataclass(frozen=True)
class Ceilings:
    """Tokens a second that the machine's rates allow, and the parts of their seconds; see `placement.speed`."""

    prefill_parts: dict[str, float]
    decode_parts: dict[str, float]
    prompt: int

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt / max(self.prefill_parts.values())

    @property
    def decode_tok_s(self) -> float:
        return 1 / sum(self.decode_parts.values())


def ceilings(engine: CudaEngine, runs: list[HybridRun]) -> Ceilings:
    """What the plan allows for the prompt, and for a token that misses as many experts as these did."""
    prompt, decoded = runs[0].run.prompt, sum(found.run.decoded for found in runs)
    made, size = engine.planned(prompt), engine.expert_bytes
    decode, rates = dict(made.decode_parts), engine.rates
    expected = decode["missed experts"] * rates.together
    missed = decode_traffic(runs).missed / decoded * size
    decode["missed experts"] = missed / rates.together
    decode["device memory"] += (expected - missed) / rates.device_read
    return Ceilings(made.prefill_parts, decode, prompt)


def phases(engine: CudaEngine, runs: list[HybridRun]) -> dict[str, dict[str, dict[str, float]]]:
    """Phase -> path -> bytes of weights of a median prompt or of a token, and how many a second while they moved.

    What the GPU reads of host memory itself, and dense weights that pass through it, move while tokens are computed, so
    their rate is that of whole tokens.
    """
    size, decoded = engine.expert_bytes, sum(found.run.decoded for found in runs)
    moved, decode_s = decode_traffic(runs), sum(found.run.decode_s for found in runs)
    missed, on_cpu, cpu_s = moved.missed * size, moved.cpu_read, moved.cpu_s
    middle = sorted(runs, key=lambda found: found.run.ttft_s)[len(runs) // 2]
    found: dict[str, dict[str, dict[str, float]]] = {"prefill": {}, "decode": {}}
    if copied := float(middle.prefill.copied + middle.prefill.dense):
        found["prefill"]["PCIe"] = {"bytes": copied, "rate": copied / middle.run.ttft_s}
    if on_cpu:
        found["decode"]["CPU"] = {"bytes": on_cpu / decoded, "rate": on_cpu / cpu_s}
    if read := missed - on_cpu + moved.dense:
        found["decode"]["PCIe"] = {"bytes": read / decoded, "rate": read / decode_s}
    return found
