"""Measure a pack on this machine: prefill, then decode, and how near the reference they stay."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import krasis
from krasis.errors import KrasisError
from krasis.native.cpu import Pool
from krasis.pack.progress import Progress
from krasis.pack.reader import Pack
from krasis.runtime.decode import decode
from krasis.runtime.drafts import Drafter
from krasis.runtime.engine import Engine
from krasis.runtime.limits import product_rate, read_rate
from krasis.runtime.machine import available_ram
from krasis.runtime.reference import ReferenceBackend
from krasis.runtime.tokenizer import Tokenizer
from krasis.runtime.work import products_per_token

AGREEMENT_LIMIT = 1.0
"""Nats. Rounded activations now and then send a token to another expert where two are all but tied: in 12 sets
of 60 windows of 16 tokens, through packs of the bundled models, the worst position was at 0.63, the median at 0.003."""

AGREEMENT_TOKENS = range(2, 17)
AGREEMENT_PRODUCTS = 4 * 10**9
"""The reference takes about a minute for so many weights."""


@dataclass(frozen=True)
class Run:
    """Seconds of a prompt of `prompt` tokens, its first answer included, and of `decoded` tokens after it.

    Of `drafted` tokens, `accepted` ones were the text's.
    """

    prompt: int
    decoded: int
    ttft_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt / self.ttft_s

    @property
    def decode_tok_s(self) -> float:
        return self.decoded / self.decode_s


@dataclass(frozen=True)
class Measured:
    """Runs, and the rates of the machine in the same minutes: bytes read and multiply-adds done in a second."""

    runs: list[Run]
    read_rates: list[float]
    product_rate: float


def workload(pack: Pack, vocabulary: int, count: int) -> tuple[list[int], str]:
    """`count` token ids and what they are: krasis' own source, repeated if short, or random without a tokenizer."""
    if pack.extra("tokenizer.json") is None:
        ids = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0))
        return ids.tolist(), "random ids"
    sources = sorted(Path(krasis.__file__).parent.rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    return list(islice(cycle(Tokenizer(pack).encode(text)), count)), "krasis' source"


def warm(pack: Pack, engine: Engine, pool: Pool) -> None:
    """Bring mapped weights into memory, unless they exceed it."""
    if engine.plan.load == "mapped" and engine.plan.resident <= available_ram():
        for segment in engine.segments:
            pool.read(pack.records(segment.name, segment.layout))


def measure(
    pack: Pack,
    engine: Engine,
    pool: Pool,
    memory: Tensor,
    ids: list[int],
    prompt: int,
    runs: int,
    progress: Progress,
    *,
    drafts: bool,
) -> Measured:
    """Run `ids` so often, the weights in memory, and the rate of reading `memory` before each time."""
    warm(pack, engine, pool)
    products = product_rate(pack, engine.segments, engine.backend)
    progress.start("measuring", runs * len(ids))
    found, rates = [], []
    for _ in range(runs):
        rates.append(read_rate(pool, memory))
        found.append(run(engine, ids, prompt, progress, drafts=drafts))
    return Measured(found, rates, products)


def run(
    engine: Engine,
    ids: list[int],
    prompt: int,
    progress: Progress,
    between: Callable[[], object] = lambda: None,
    *,
    drafts: bool = False,
) -> Run:
    """The first `prompt` of `ids` at once, then the others one by one, each followed by a greedy choice.

    What is chosen isn't fed back, so that every run does the same. `drafts` are held against the text. `between` is
    called after the prompt, untimed. Raises KrasisError for logits that are not finite.
    """
    text, state, decoded = Text(ids), engine.new_state(), len(ids) - prompt
    drafter = Drafter(engine.costs) if drafts else None
    begin = time.perf_counter()
    tokens = decode(engine, ids[:prompt], state, text, most=decoded + 1, drafter=drafter)
    next(tokens)
    ttft = time.perf_counter() - begin
    progress.advance(prompt)
    between()
    begin = time.perf_counter()
    for _ in tokens:
        pass
    decode_s = time.perf_counter() - begin
    progress.advance(decoded)
    if not bool(text.logits.isfinite().all()):
        raise KrasisError(f"logits are not finite after {len(ids)} tokens")
    counts = (drafter.drafted, drafter.accepted) if drafter else (0, 0)
    return Run(prompt, decoded, ttft, decode_s, *counts)


class Text:
    """Implements `krasis.runtime.decode.Choose`: makes a greedy choice, and gives the text's own token instead."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = torch.tensor(ids)

    def __call__(self, logits: Tensor, position: int) -> Tensor:
        self.logits, chosen = logits, logits.argmax(0, keepdim=True)
        self._ids = self._ids.to(logits.device)
        return self._ids[position : position + 1] if position < len(self._ids) else chosen


def agreement(pack: Pack, engine: Engine, ids: list[int]) -> float:
    """The largest divergence KL(reference || engine), in nats, over positions of `ids`.

    The engine takes the first half as a prompt and decodes the rest.
    """
    half, state = len(ids) // 2, engine.new_state()
    parts = [ids[:half], *([token] for token in ids[half:])]
    found = torch.cat([engine.logits(engine.all_hidden(part, state)) for part in parts])
    reference = Engine(pack, ReferenceBackend(), context=len(ids))
    expected = reference.logits(reference.all_hidden(ids, reference.new_state()))
    divergences = functional.kl_div(found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none")
    return float(divergences.sum(-1).max())


def agreement_tokens(engine: Engine) -> int:
    """How many tokens `agreement` is measured over, so that the reference takes no more than a minute or two."""
    affordable = AGREEMENT_PRODUCTS // products_per_token(engine.spec, engine.segments)
    return min(max(affordable, AGREEMENT_TOKENS.start), AGREEMENT_TOKENS.stop - 1)
