"""Tokens that continue a sequence, each as soon as it is known: an engine may be a step ahead of who reads them."""

from collections.abc import Callable, Generator

from torch import Tensor

from krasis.runtime.engine import Engine
from krasis.runtime.state import SequenceState

Choose = Callable[[Tensor, int], Tensor]
"""Logits float32 [vocabulary], and the position of the token they are for -> its id, int64 [1] where they are."""


def decode(
    engine: Engine, prompt: list[int], state: SequenceState, choose: Choose, *, most: int
) -> Generator[int, None, None]:
    """At most `most` tokens, 1 or more, that follow `state` and `prompt`.

    Where the engine runs ahead, it computes the next token while whoever asked looks at one, though not before the
    first is given. Close the generator where it is left early: `state` then is of all tokens given but the last.
    """
    begin, given = state.position + len(prompt), 0
    token = engine.coming(choose(engine.last_logits(prompt, state), begin)).get()
    coming = None
    try:
        while True:
            given += 1
            yield token
            if given == most:
                return
            coming = coming or engine.coming(choose(engine.step([token], state)[-1], begin + given))
            ahead = None
            if engine.runs_ahead and given + 1 < most and state.position < state.capacity:
                ahead = engine.coming(choose(engine.step(coming.ids, state)[-1], begin + given + 1))
            token, coming = coming.get(), ahead
    finally:
        engine.settle(state, begin + given - 1)
