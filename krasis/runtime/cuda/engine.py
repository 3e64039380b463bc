"""A pack on a GPU: planned, registered, placed, and run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from krasis import models
from krasis.heat.routing import Routing
from krasis.models.conform import check_pack, read_spec
from krasis.native.cuda.gemm import Scratch
from krasis.pack.reader import Pack
from krasis.runtime import plan as planning
from krasis.runtime.backend import KvDtype
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.cuda.backend import CudaBackend
from krasis.runtime.cuda.experts import Hybrid
from krasis.runtime.cuda.lanes import Lanes
from krasis.runtime.cuda.placed import place_dense
from krasis.runtime.cuda.residents import Residents
from krasis.runtime.cuda.state import DeviceState
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.engine import Engine
from krasis.runtime.placement.memory import RING_BUFFERS
from krasis.runtime.placement.outline import LAYOUT, outline
from krasis.runtime.placement.plan import Wishes
from krasis.runtime.placement.plan import plan as plan_devices
from krasis.runtime.rates import known
from krasis.runtime.state import SequenceState
from krasis.runtime.tracer import Tracer
from krasis.runtime.weights import PackWeights

PROMPT = 10_000
"""Tokens that most prompts have at most; longer ones may be taken in several passes."""


@dataclass
class Started:
    """Seconds of each step of a start."""

    steps: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.steps[step], self._since = now - self._since, now


class CudaEngine(Engine):
    """Runs one sequence at a time, of at most `context` tokens, in `vram` bytes of `device`.

    `heat` says which experts are worth a place there. `placement` is the plan that was made, `started` what starting
    took.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        *,
        context: int,
        vram: int,
        kv: KvDtype | None = None,
        heat: Routing | None = None,
        load: planning.Load = "mapped",
        trace: bool = False,
    ) -> None:
        self.started, self.device = Started(), device
        self.spec, self.kv = read_spec(pack), kv or "bf16"
        self._family = models.of(self.spec)
        check_pack(pack, self._family, self.spec)
        self.segments, self.layers = planning.chosen(pack.manifest, (LAYOUT,)), self._family.states(self.spec)
        self.sequences, self.moments = 1, None
        wishes = Wishes((vram,), context, self.kv, PROMPT)
        self.placement = plan_devices(outline(pack.manifest, pack.path), known(), heat, wishes)
        self.plan = planning.plan(self.spec, pack.manifest, context, self.kv, (LAYOUT,), load)
        self.started.done("plan")
        self._store = HostStore(pack, device)
        self.notes = list(self._store.notes)
        self.started.done("register")
        self.tracer = Tracer(self._family.moe_layers(self.spec)) if trace else None
        self._place(pack)
        self._synchronize()
        self.started.done("load")

    def _place(self, pack: Pack) -> None:
        """Fill the device as the plan says."""
        planned, device = self.placement.devices[0], self.device
        dense = place_dense(
            pack, planned.layers, head=planned.head, arena=Arena("dense weights", planned.dense, device)
        )
        hot = Arena("resident experts", planned.experts, device)
        experts = self._family.moe_layers(self.spec)
        self.residents = Residents(pack, experts, planned.residents, hot, device)
        ring = Arena("ring of streamed experts", planned.workspace.expert_ring, device)
        share = planned.workspace.expert_ring // RING_BUFFERS
        buffers = [ring.take(share) for _ in range(RING_BUFFERS)] if share else []
        self.stream = Stream(pack, self._store, self.residents, buffers, Lanes(device))
        scratch = Scratch(device)
        place = torch.zeros(1, dtype=torch.int32, device=device)
        hybrid = Hybrid(pack, self.residents, self.stream, scratch)
        self.backend = CudaBackend(place, scratch, hybrid.layer)
        self._state = DeviceState(self.layers, self.plan.context, self.chunk, self.kv, place)
        self.model = self._family.build(self.spec, PackWeights(dense, self.backend, tracer=self.tracer))

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that are taken together."""
        return self.placement.chunk

    def new_state(self) -> SequenceState:
        """The state of an empty sequence. There is one: those given before are lost."""
        self._state.reset()
        return self._state

    @torch.inference_mode()
    def last_logits(self, ids: list[int], state: SequenceState) -> Tensor:
        for chunk in self._chunks(ids):
            hidden = self._forward(chunk, state)
        return self.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def all_hidden(self, ids: list[int], state: SequenceState) -> Tensor:
        return torch.cat([self._forward(chunk, state) for chunk in self._chunks(ids)])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden).cpu()

    def _forward(self, ids: Tensor, state: SequenceState) -> Tensor:
        self.stream.begin()
        return self.model.forward(ids, state)

    def _chunks(self, ids: list[int]) -> Sequence[Tensor]:
        return torch.split(torch.tensor(ids, dtype=torch.int32, device=self.device), self.chunk)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
