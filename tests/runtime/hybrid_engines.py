"""Hybrid engines as tests want them: a share of the experts is resident, and prompts meet the others in one way."""

import dataclasses

import torch

from krasis.pack.reader import Pack
from krasis.runtime.cuda.engine import PROMPT, CudaEngine
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import Wishes, plan, with_residents
from krasis.runtime.rates import REFERENCE

ROOMY = 8 << 30


def hybrid_engine(path, device, share, tokens, *, kv="bf16", chunk=None, **options):
    """An engine, planned for so many tokens."""
    pack = Pack(path)
    found = outline(pack.manifest)
    placed = with_residents(plan(found, REFERENCE, None, Wishes((ROOMY,), tokens, kv, PROMPT)), found, share)
    placed = dataclasses.replace(placed, chunk=chunk or placed.chunk)
    usual = {"context": tokens, "vram": ROOMY, "kv": kv, "threads": 1, "placement": placed, "rates": REFERENCE}
    return CudaEngine(pack, torch.device(device), **usual | options)


@dataclasses.dataclass
class Forced:
    """A crossover that has prompts meet experts in one way."""

    way: str

    def best(self, tokens):
        return "few" if tokens == 1 else self.way


def prefilled(engine, ids, way="whole"):
    """Logits after each token of a prompt, and the state."""
    engine.runner.ways = Forced(way)
    state = engine.new_state()
    return engine.logits(engine.all_hidden(ids, state)), state


def apart(found, expected):
    """Share of the norm."""
    return float((found - expected).norm() / expected.norm())
