"""Is the hybrid engine right? Losses and greedy tokens of packs, wherever experts lie, beside the CPU's.

python -m bench.hybrid PACK... --text FILE...

For each pack and precision of its cache: the loss on text by prefill and by decode with all experts on the GPU, half of
them and none, beside that of the CPU with the same cache; and 200 tokens continued greedily, which must be the same
wherever experts lie, or differ first where two logits are closer than rounding.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from krasis.pack.reader import Pack
from krasis.runtime.backend import KvDtype
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.cuda.engine import PROMPT, CudaEngine
from krasis.runtime.engine import Engine
from krasis.runtime.eval import Loss, window_loss, windows
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import Wishes, plan, with_residents
from krasis.runtime.rates import REFERENCE
from krasis.runtime.tokenizer import Tokenizer

WINDOW = 512
LIMITS: dict[KvDtype, float] = {"bf16": 0.003, "fp8": 0.01}
"""Nats of loss from the CPU's with a bf16 cache."""

ROOMY = 8 << 30
"""Bytes that hold every expert of the packs this is for."""

GREEDY, CLOSE = 200, 0.1
"""Tokens continued, and the gap of two logits that rounding may close."""


@dataclass(frozen=True)
class Greedy:
    """Tokens, and how far the second likeliest was behind at each."""

    tokens: list[int]
    gaps: list[float]


def loss(engine: Engine, texts: list[list[int]], path: str) -> float:
    """Over all windows of all texts."""
    total = Loss(0.0, 0)
    for ids in texts:
        for window in windows(ids, WINDOW):
            total += window_loss(engine, window, "decode" if path == "decode" else "prefill")
    return total.nll


def greedy(engine: Engine, prompt: list[int]) -> Greedy:
    state, tokens, gaps = engine.new_state(), [], []
    logits = engine.last_logits(prompt, state)
    for _ in range(GREEDY):
        best = logits.float().topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        logits = engine.last_logits(tokens[-1:], state)
    return Greedy(tokens, gaps)


def compared(first: Greedy, other: Greedy) -> str:
    """Where two runs part, and by what."""
    for i, (a, b) in enumerate(zip(first.tokens, other.tokens, strict=True)):
        if a != b:
            gap = min(first.gaps[i], other.gaps[i])
            return f"differ at {i}, gap {gap:.3f}" + ("" if gap < CLOSE else " WRONG")
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2048, help="of each text, by prefill")
    parser.add_argument("--decoded", type=int, default=512, help="of each text, by decode")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--emulated", action="store_true", help="run on the emulated GPU")
    args = parser.parse_args()
    device, backend = torch.device("cpu") if args.emulated else torch.device("cuda", 0), CpuBackend(args.threads)
    heads = ("pack", "cache", "on GPU", "prefill", "apart", "decode", "apart", "greedy", "seconds")
    print("{:<12} {:<5} {:<9} {:>8} {:>8} {:>8} {:>8}  {:<6} {}".format(*heads))
    failed = False
    for path in args.packs:
        pack = Pack(path)
        tokenizer = Tokenizer(pack)
        texts = [tokenizer.encode(text.read_text(encoding="utf-8"), special=False) for text in args.text]
        many, few = [ids[: args.tokens] for ids in texts], [ids[: args.decoded] for ids in texts]
        name, found = str(pack.manifest.model["model_type"]), outline(pack.manifest)
        for kv in LIMITS:
            cpu = Engine(pack, backend, context=WINDOW, kv=kv)
            expected = loss(cpu, many, "prefill"), loss(cpu, few, "decode")
            print(f"{name:<12} {kv:<5} {'(CPU)':<9} {expected[0]:8.5f} {'':>8} {expected[1]:8.5f}")
            first: Greedy | None = None
            for share in (1.0, 0.5, 0.0):
                begin = time.perf_counter()
                roomy = plan(found, REFERENCE, None, Wishes((ROOMY,), WINDOW, kv, PROMPT))
                placed = with_residents(roomy, found, share)
                engine = CudaEngine(
                    pack, device, context=WINDOW, vram=ROOMY, kv=kv, threads=args.threads, placement=placed
                )
                losses = loss(engine, many, "prefill"), loss(engine, few, "decode")
                tokens = greedy(engine, texts[0][:64])
                engine.close()
                first = first or tokens
                same = compared(first, tokens)
                apart = [a - b for a, b in zip(losses, expected, strict=True)]
                ok = all(abs(d) <= LIMITS[kv] for d in apart) and "WRONG" not in same
                failed |= not ok
                hot = f"{len(placed.devices[0].residents)} of {sum(engine.experts_of.values())}"
                figures = " ".join(f"{a:8.5f} {d:+8.5f}" for a, d in zip(losses, apart, strict=True))
                seconds = f"{time.perf_counter() - begin:.1f}{'' if ok else ' FAIL'}"
                print(f"{name:<12} {kv:<5} {hot:<9} {figures}  {same:<6} {seconds}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
