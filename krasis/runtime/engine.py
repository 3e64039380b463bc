"""A pack made ready to run: backend, weights, state."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krasis import models
from krasis.models.conform import check_pack, read_spec
from krasis.pack.progress import Progress, Silent
from krasis.pack.reader import Pack
from krasis.runtime import plan as planning
from krasis.runtime.backend import Backend, KvDtype, RunsLayers
from krasis.runtime.drafts import Costs, Learnt
from krasis.runtime.machine import available_ram
from krasis.runtime.moments import Moments, left_beside, moe_shapes
from krasis.runtime.state import SequenceState
from krasis.runtime.together import Together
from krasis.runtime.tracer import Tracer
from krasis.runtime.weights import PackWeights
from krasis.runtime.work import routed_share


@dataclass(frozen=True)
class Coming:
    """A token that was chosen: `ids` int64 [1], which a step may be given. `get` waits for it."""

    ids: Tensor
    get: Callable[[], int]


class Engine:
    """Runs sequences of at most `context` tokens, `sequences` of them together where results stay the same bit for bit.

    `plan` and `notes` say what it takes, to which the first step may add; `segments` what it reads of the pack, and
    `layers` what each layer remembers.

    `runs_ahead`: a step returns before it is done, and may be given the token that another one is still to choose.
    `load` "copied" reads the weights into memory of their own, telling `progress`. `trace` counts what the router
    chooses, `moments` sums the squares of what experts are given.
    """

    runs_ahead = False

    def __init__(
        self,
        pack: Pack,
        backend: Backend,
        *,
        context: int,
        sequences: int = 1,
        kv: KvDtype | None = None,
        layout: str | None = None,
        load: planning.Load = "mapped",
        progress: Progress | None = None,
        trace: bool = False,
        moments: bool = False,
    ) -> None:
        self.spec, self.backend = read_spec(pack), backend
        self.kv = kv or backend.kv
        self._family = models.of(self.spec)
        check_pack(pack, self._family, self.spec)
        layouts = (layout,) if layout else backend.layouts
        self.segments = planning.chosen(pack.manifest, layouts)
        self.layers = self._family.states(self.spec)
        self.sequences = sequences if backend.exact_rows else 1
        self.plan = planning.plan(self.spec, pack.manifest, context, self.kv, layouts, load, self.sequences)
        shapes = moe_shapes(pack, self._family.moe_layers(self.spec)) if moments else {}
        self.notes = planning.check(self.plan, left_beside(shapes, available_ram()))
        if self.sequences < sequences:
            self.notes.append(f"{backend.name} runs one sequence at a time: it rounds a row by the rows beside it")
        if load == "copied":
            keys = ((segment.name, segment.layout) for segment in self.segments)
            pack.copy(keys, len(os.sched_getaffinity(0)), progress or Silent())
        self.tracer = Tracer(self._family.moe_layers(self.spec)) if trace else None
        self.moments = Moments(shapes) if moments else None
        weights = PackWeights(pack, backend, layout=layout, tracer=self.tracer, moments=self.moments)
        self.model = self._family.build(self.spec, weights)
        if isinstance(backend, RunsLayers) and self.tracer is None and self.moments is None:
            self.model.blocks = backend.layers(self.model.blocks, self.notes.append)
        self.costs: Costs = Learnt(routed_share(self.spec, self.segments))

    @property
    def hit_rate(self) -> float | None:
        """Share of what decoded tokens read of experts that lay on a GPU; None without one."""
        return None

    def new_state(self) -> SequenceState:
        """The state of an empty sequence."""
        size, backend = (self.plan.context, planning.PREFILL_CHUNK), self.backend
        return SequenceState(self.layers, *size, self.kv, backend.attention, backend.store)

    @torch.inference_mode()
    def last_logits(self, ids: list[int], state: SequenceState) -> Tensor:
        """Append ids to the sequence; float32 [vocabulary] logits after the last."""
        for chunk in _chunks(ids):
            hidden = self.model.forward(chunk, state)
        return self.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, ids: Sequence[int] | Tensor, state: SequenceState) -> Tensor:
        """Append a few ids; float32 [len(ids), vocabulary] logits after each. Of several, some may be taken back."""
        if len(ids) > 1:
            state.attempt()
        else:
            state.commit()
        return self.logits(self.model.forward(torch.as_tensor(ids), state))

    def coming(self, ids: Tensor) -> Coming:
        """The token `ids` [1] that is chosen of a step's logits, or will be. Its `get` raises what failed."""
        return Coming(ids, lambda: int(ids))

    def settle(self, state: SequenceState, position: int) -> None:
        """Be done with steps, and take back what of `state` lies at `position` or after it."""
        state.take_back(position)
        state.commit()

    @torch.inference_mode()
    def all_hidden(self, ids: list[int], state: SequenceState) -> Tensor:
        """Append ids to the sequence; float32 [len(ids), H] hidden states before the final norm."""
        return torch.cat([self.model.forward(chunk, state) for chunk in _chunks(ids)])

    @torch.inference_mode()
    def next_hidden(self, ids: list[int], states: Sequence[SequenceState]) -> Tensor:
        """Append an id to each of several sequences; float32 [len(ids), H], each row as `all_hidden` gives it."""
        return self.model.forward(torch.tensor(ids), Together(states))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [tokens, H] -> float32 [tokens, vocabulary]."""
        return self.model.logits(hidden)


def _chunks(ids: list[int]) -> tuple[Tensor, ...]:
    return torch.split(torch.tensor(ids), planning.PREFILL_CHUNK)
