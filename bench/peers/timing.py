"""What every system is asked for, and how it is timed. Plain Python, as it runs in the peers' environment too.

The tokens are drawn once and the same for all: a system that continued its own text would soon repeat itself, and with
it the experts it reads.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Protocol

VOCABULARY = 512
CONTEXT = 1024
PROMPT = 512
DECODED = 64
REPEATS = 3


class Model(Protocol):
    """A loaded model with one sequence."""

    def reset(self) -> None:
        """Make the sequence empty."""

    def append(self, tokens: list[int]) -> Iterable[float]:
        """The logits after the last token, computed by the time they are returned."""


def tokens(count: int) -> list[int]:
    rng = random.Random(0)
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def measure(model: Model, bytes_per_token: int, repeats: int = REPEATS) -> None:
    """Print one JSON object: tokens a second of decode and prefill after a warm-up, and the prompt's last logits."""
    prompt, decoded = tokens(PROMPT), tokens(DECODED)

    def prefill() -> list[float]:
        return [float(logit) for logit in model.append(prompt)]

    def decode() -> None:
        for token in decoded:
            model.append([token])

    def rate(action: Callable[[], object], count: int) -> float:
        model.reset()
        start = time.perf_counter()
        action()
        return count / (time.perf_counter() - start)

    model.reset()
    logits = prefill()
    rate(decode, DECODED)
    found = {
        "decode": statistics.median(rate(decode, DECODED) for _ in range(repeats)),
        "prefill": statistics.median(rate(prefill, PROMPT) for _ in range(repeats)),
        "bytes_per_token": bytes_per_token,
        "logits": logits,
    }
    print(json.dumps(found))


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    return parser
