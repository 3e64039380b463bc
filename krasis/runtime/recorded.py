"""A token without Python between its native calls: they are recorded once, and then made again in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from krasis.models.blocks.rope import Angles
from krasis.models.family import Block
from krasis.models.state import State
from krasis.native.cpu import Pool
from krasis.native.tape import Tape
from krasis.runtime.state import SequenceState


class Recorded:
    """Implements `Block`: all layers of a model as one. Results are those of the layers, bit for bit.

    The next token of a `SequenceState` is recorded, and those after it are replayed as long as what the state remembers
    stays where it is. What is not one token of one sequence runs by `blocks`. So does every token where torch computes
    something, which no tape can have: `unrecorded` then says what, and `tell` is told so.
    """

    def __init__(self, blocks: Sequence[Block], pool: Pool, tell: Callable[[str], None]) -> None:
        self.unrecorded: str | None = None
        self.blocks, self._pool = blocks, pool
        self._tell = tell
        self._steps: WeakKeyDictionary[SequenceState, _Step] = WeakKeyDictionary()

    def forward(self, x: Tensor, update: Tensor | None, angles: Angles, state: State) -> tuple[Tensor, Tensor]:
        recordable = self.unrecorded is None and len(x) == 1 and update is None
        if not (recordable and isinstance(state, SequenceState) and state.mixes is None):
            return self._run(x, update, angles, state)
        state.check(1)
        if state.position >= state.room:
            return self._run(x, update, angles, state)
        step = self._steps.get(state)
        if step is None or state.position < step.position or state.room != step.room:
            return self._record((x, *angles), state)
        for kept, given in zip(step.given, (x, *angles), strict=True):
            kept.copy_(given)
        step.tape.replay(state.position - step.position)
        return step.result

    def _run(self, x: Tensor, update: Tensor | None, angles: Angles, state: State) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x, update = block.forward(x, update, angles, state)
        assert update is not None
        return x, update

    def _record(self, given: Sequence[Tensor], state: SequenceState) -> tuple[Tensor, Tensor]:
        """Run the layers, and keep what they do."""
        x, cos, sin = given = [tensor.clone() for tensor in given]
        tape = self._pool.tape = Tape(self._pool)
        try:
            with _Watch(tape) as watch:
                result = self._run(x, None, (cos, sin), state)
        finally:
            self._pool.tape = None
        if watch.computed is None:
            self._steps[state] = _Step(tape, given, result, state.position, state.room)
        else:
            self.unrecorded = watch.computed
            self._tell(f"tokens run layer by layer, since not all is native on the CPU: {self.unrecorded} is torch's")
        return result


@dataclass(frozen=True)
class _Step:
    """What was recorded of a token at `position`, and goes for it and those after it while there is the same `room`."""

    tape: Tape
    given: list[Tensor]
    result: tuple[Tensor, Tensor]
    position: int
    room: int


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what torch allocates for a tape; `computed` is the first operation that is more than that or a view."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed: str | None = None
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _EMPTY:
            self._tape.kept.append(result)
        elif not _is_view(func):
            self.computed = self.computed or str(func)
        return result


def _is_view(operation: Any) -> bool:
    aliases = [out.alias_info for out in operation._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)
