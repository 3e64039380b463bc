"""Tokens that continue a sequence, each as soon as it is known: an engine may be a step ahead of who reads them."""

import time
from collections.abc import Callable, Generator

from torch import Tensor

from krasis.runtime.drafts import Drafter
from krasis.runtime.engine import Coming, Engine
from krasis.runtime.state import SequenceState

Choose = Callable[[Tensor, int], Tensor]
"""Logits float32 [vocabulary], and the position of the token they are for -> its id, int64 [1] where they are. The same
whenever it is asked.
"""


def decode(
    engine: Engine,
    prompt: list[int],
    state: SequenceState,
    choose: Choose,
    *,
    most: int,
    drafter: Drafter | None = None,
) -> Generator[int, None, None]:
    """At most `most` tokens, 1 or more, that follow `state` and `prompt`.

    Where the engine runs ahead, it computes the next token while whoever asked looks at one, though not before the
    first is given. What `drafter` drafts is checked in one pass: each token given is what `choose` says of the pass'
    own logits. Close the generator where it is left early: `state` then is of all tokens given but the last.
    """
    run = _Run(engine, state, choose)
    begin, given = state.position + len(prompt), 0
    known = [run.chosen(engine.last_logits(prompt, state), begin).get()]
    if drafter is not None:
        drafter.begin(prompt)
    coming: Coming | None = None
    try:
        while True:
            if drafter is not None:
                drafter.read(known)
            for token in known:
                given += 1
                yield token
            if given == most:
                return
            # Tokens that may still be given, and that the state has room for.
            room = min(most - given, state.capacity - state.position)
            if coming is None and drafter is not None and (draft := drafter.draft(room - 1)):
                known = run.checked(token, draft, drafter)
                continue
            started = time.perf_counter()
            coming, ahead = coming or run.begun([token]), None
            # A draft has to know the token that is coming.
            if engine.runs_ahead and room > 1 and not (drafter is not None and drafter.draft(room - 2)):
                ahead = run.begun(coming.ids)
            known, coming = [coming.get()], ahead
            if drafter is not None and ahead is None:
                drafter.costs.took(1, time.perf_counter() - started)
    finally:
        engine.settle(state, begin + given - 1)


class _Run:
    """Steps of one sequence."""

    def __init__(self, engine: Engine, state: SequenceState, choose: Choose) -> None:
        self._engine, self._state, self._choose = engine, state, choose

    def chosen(self, logits: Tensor, position: int) -> Coming:
        return self._engine.coming(self._choose(logits, position))

    def begun(self, ids: list[int] | Tensor) -> Coming:
        """The token after one."""
        logits = self._engine.step(ids, self._state)
        return self.chosen(logits[-1], self._state.position)

    def checked(self, token: int, draft: list[int], drafter: Drafter) -> list[int]:
        """What follows `token`: as much of the draft as is right, and the token after that."""
        started, begin = time.perf_counter(), self._state.position + 1
        found: list[int] = []
        for logits, drafted in zip(self._engine.step([token, *draft], self._state), [*draft, None], strict=True):
            found.append(self.chosen(logits, begin + len(found)).get())
            if found[-1] != drafted:
                break
        self._state.take_back(begin + len(found) - 1)
        drafter.checked(len(draft), len(found) - 1)
        drafter.costs.took(1 + len(draft), time.perf_counter() - started)
        return found
