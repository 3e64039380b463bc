"""Dense weights that pass through the device: buffers that copies fill while kernels read the others."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from krasis.models.blocks.rope import Angles
from krasis.models.family import Block
from krasis.models.state import State
from krasis.native.cuda.host import copy
from krasis.pack.reader import Pack
from krasis.runtime.cuda.lanes import Event, Lanes
from krasis.runtime.cuda.placed import stored_records
from krasis.runtime.cuda.staging import Staging
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.placement.outline import passing_segments
from krasis.runtime.plan import gib

Part = tuple[Tensor, int]
"""Records in the host's memory, and bytes into the buffer."""


class DenseStream:
    """The dense weights of `layers`. Those of the k-th lie in buffer k modulo the number of buffers while it runs; once
    it has, a copy brings what lies there next, of the next pass where this one has no more.

    `places` maps segments to where they lie, which never changes. A pass copies `bytes`; `copied` counts them all.
    """

    def __init__(
        self, pack: Pack, store: HostStore, layers: Sequence[int], ring: Sequence[Tensor], lanes: Lanes
    ) -> None:
        self._store, self._lanes, self._buffers = store, lanes, ring[: len(layers)]
        self._turns = {layer: turn for turn, layer in enumerate(layers)}
        self.places: dict[str, Tensor] = {}
        self._parts = [self._placed(pack, layer) for layer in layers]
        self.bytes = sum(records.nbytes for parts in self._parts for records, _ in parts)
        self._holds = [-1] * len(self._buffers)
        self._filled: list[Event] = [None] * len(self._buffers)
        # Where the device can't reach the pack, what it is to get is gathered first.
        sizes = [len(buffer) for buffer in self._buffers]
        self._staging = None if store.registered or not sizes else Staging(sizes, self._buffers[0].device)
        self.copied = 0
        passing = f"dense weights do not all fit: {gib(self.bytes)} of them pass through the GPU for each token"
        self.notes = [passing] if layers else []

    def _placed(self, pack: Pack, layer: int) -> list[Part]:
        buffer, parts, at = self._buffers[self._turns[layer] % len(self._buffers)], [], 0
        for name in (name for name in passing_segments(layer) if name in pack.layouts_of):
            records = stored_records(pack, name)
            self.places[name] = buffer[at : at + records.nbytes]
            parts.append((records, at))
            at += records.nbytes
        assert at <= len(buffer)
        return parts

    def through(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks of all layers, with their weights there when they run."""
        return [
            _Passing(block, self, self._turns[layer]) if layer in self._turns else block
            for layer, block in enumerate(blocks)
        ]

    def passes(self, part: Tensor) -> bool:
        """Whether it lies in one of the buffers."""
        return any(part.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for buffer in self._buffers)

    def begin(self) -> None:
        """Before the first layer of a pass: the first weights are copied where the pass before did not get to it."""
        self.copied += self.bytes
        for turn, held in enumerate(self._holds):
            if held != turn:
                self._copy(turn)

    @contextlib.contextmanager
    def there(self, turn: int) -> Iterator[None]:
        """Weights are there for the kernels that are begun inside, and then make room."""
        buffer = turn % len(self._buffers)
        self._lanes.wait(self._filled[buffer])
        yield
        following = turn + len(self._buffers)
        self._copy(following if following < len(self._parts) else buffer)

    def settle(self) -> None:
        """The current stream waits for all copies: a captured step can't wait for what was begun outside of it, nor
        leave anything under way.
        """
        for buffer, event in enumerate(self._filled):
            self._lanes.wait(event)
            self._filled[buffer] = None

    def _copy(self, turn: int) -> None:
        buffer = turn % len(self._buffers)
        sources, to = self._sources(turn, buffer), self._buffers[buffer]
        # All that read the buffer was begun before.
        with self._lanes.copying(after=self._lanes.mark()):
            for source, at, size in sources:
                copy(to.device, to.data_ptr() + at, source, size)
            self._filled[buffer] = self._lanes.mark()
        self._holds[buffer] = turn

    def _sources(self, turn: int, buffer: int) -> list[tuple[int, int, int]]:
        """Addresses of what is to be copied, bytes into the buffer, and bytes."""
        parts = self._parts[turn]
        if self._staging is None:
            return [(self._store.address(records), at, records.nbytes) for records, at in parts]
        self._lanes.finish(self._filled[buffer])
        return [
            (self._staging.fill(buffer, records, [(0, at, records.nbytes)]) + at, at, records.nbytes)
            for records, at in parts
        ]


@dataclass(frozen=True)
class _Passing:
    """A layer whose dense weights pass through."""

    block: Block
    stream: DenseStream
    turn: int

    def forward(self, x: Tensor, update: Tensor | None, angles: Angles, state: State) -> tuple[Tensor, Tensor]:
        with self.stream.there(self.turn):
            return self.block.forward(x, update, angles, state)
