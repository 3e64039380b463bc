"""Tokens through a model on the device: many at once, or a few by captured steps."""

import contextlib
import gc
from collections.abc import Iterator

import torch
from torch import Tensor

from krasis.models.family import Model
from krasis.native.cuda.gemm import MOST_FEW
from krasis.runtime.cuda.colleague import Colleague
from krasis.runtime.cuda.dense import DenseStream
from krasis.runtime.cuda.follow import Follow
from krasis.runtime.cuda.passes import Crossover, Way
from krasis.runtime.cuda.state import DeviceState
from krasis.runtime.cuda.step import Found, Step
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.state import Mix

STEPS = (MOST_FEW, 4, 2, 1)
"""Tokens that are taken together in captured steps."""


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage is collected before, not inside: to free an older engine's graphs spoils what is being captured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Runner:
    """Runs the one sequence of `state`. `ways` says how tokens meet experts that are not resident, which come by
    `stream`, are computed by the `colleague`, or become resident as `follow` sees fit; weights of `dense` pass through.

    `decoded` counts tokens that were taken a few at a time.
    """

    def __init__(
        self,
        model: Model,
        state: DeviceState,
        stream: Stream,
        dense: DenseStream,
        colleague: Colleague | None,
        ways: Crossover,
    ) -> None:
        self._model, self._state, self._stream, self._dense = model, state, stream, dense
        self._colleague, self.ways = colleague, ways
        self._steps: dict[int, Step] = {}
        self.follow: Follow | None = None
        self.decoded = 0

    def capture(self, device: torch.device) -> None:
        """Take a few tokens by captured steps from now on. The sequence is lost."""
        self._dense.begin()
        self._stream.begin("few")
        pool = None
        with torch.inference_mode(), _uncollected():
            # Each is run once before it is captured.
            for tokens in (tokens for tokens in STEPS if 2 * tokens <= self._state.capacity):
                self._state.reset()
                self._steps[tokens] = Step(self._step, tokens, device, pool)
                pool = self._steps[tokens].pool
        self._state.reset()

    def passes(self, ids: Tensor, chunk: int) -> Iterator[tuple[Tensor, Way]]:
        """Tokens that are taken together, at most `chunk`, and how they meet experts that are not resident."""
        self._state.check(len(ids))
        for some in torch.split(ids, chunk):
            if (way := self.ways.best(len(some))) != "few":
                yield some, way
                continue
            while len(some):
                tokens = next(step for step in STEPS if step <= len(some))
                yield some[:tokens], way
                some = some[tokens:]

    def run(self, ids: Tensor, way: Way) -> Found:
        """ids int32 [tokens]. With logits where these are made anyway."""
        if self.follow is None:
            return self._met(ids, way)
        if way != "few":
            self.follow.settle()
        found = self._met(ids, way)
        self.follow.ran(len(ids), prompt=way != "few")
        return found

    def _met(self, ids: Tensor, way: Way) -> Found:
        self._dense.begin()
        self._stream.begin(way)
        if way != "few":
            return Found(self._model.forward(ids, self._state))
        self.decoded += len(ids)
        if self._colleague is not None:
            self._colleague.wake()
        if len(ids) not in self._steps:
            return self._few(ids)
        self._dense.settle()
        found = self._steps[len(ids)](ids)
        if ids.is_cuda:
            self._state.moved(len(ids))
        return found

    def _few(self, ids: Tensor) -> Found:
        mixes: list[Mix] | None = [] if len(ids) > 1 else None
        self._state.mixes = mixes
        hidden = self._model.forward(ids, self._state)
        self._state.commit()
        return Found(hidden, self._model.logits(hidden), mixes)

    def _step(self, ids: Tensor) -> Found:
        found = self._few(ids)
        self._dense.settle()
        return found
