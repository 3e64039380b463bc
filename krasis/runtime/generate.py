"""Answer a prompt: prefill, then token by token until the model, a stop string or the limit ends it."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from krasis.runtime.decode import Choose, decode
from krasis.runtime.drafts import Drafter
from krasis.runtime.engine import Engine
from krasis.runtime.state import SequenceState
from krasis.runtime.stop import StopText
from krasis.runtime.tokenizer import Tokenizer


@dataclass
class Answer:
    """What was generated and how long it took. Times are seconds; token ids include an end token.

    Of `drafted` tokens, `accepted` ones were right.
    """

    prompt_tokens: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"
    ttft_s: float = 0.0
    decode_s: float = 0.0
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt_tokens / self.ttft_s

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens a second after the first; None where there was no second."""
        return (len(self.token_ids) - 1) / self.decode_s if len(self.token_ids) > 1 else None


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: list[int],
    state: SequenceState,
    choose: Choose,
    *,
    max_tokens: int,
    stops: Sequence[str] = (),
    show: Callable[[str], object] = lambda text: None,
    drafter: Drafter | None = None,
    between: Callable[[], object] = lambda: None,
) -> Answer:
    """Continue `state` with `prompt`, then generate. `show` gets the text piece by piece; `between` is called once the
    first token is there, untimed.
    """
    answer = Answer(len(prompt))
    stream, stop = tokenizer.stream(), StopText(list(stops))

    def emit(text: str) -> None:
        answer.text += text
        if text:
            show(text)

    begin = time.perf_counter()
    with closing(decode(engine, prompt, state, choose, most=max_tokens, drafter=drafter)) as tokens:
        for token in tokens:
            if not answer.token_ids:
                answer.ttft_s = time.perf_counter() - begin
                between()
                begin = time.perf_counter()
            answer.token_ids.append(token)
            ended = token in engine.spec.eos_token_ids
            if not ended:
                emit(stop.push(stream.push(token)))
            if ended or stop.hit:
                answer.finish_reason = "stop"
                break
        answer.decode_s = time.perf_counter() - begin
    emit(stop.flush())
    if drafter is not None:
        answer.drafted, answer.accepted = drafter.drafted, drafter.accepted
    return answer
