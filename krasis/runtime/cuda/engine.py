"""A pack on a GPU: planned, registered, placed, and run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import torch
from torch import Tensor

from krasis import models
from krasis.heat.routing import Routing
from krasis.models.conform import check_pack, read_spec
from krasis.native.cores import physical_cores
from krasis.native.cuda.gemm import Scratch
from krasis.native.cuda.mailbox import TIMEOUT
from krasis.pack.reader import Pack
from krasis.runtime import plan as planning
from krasis.runtime.backend import KvDtype
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.cuda.arena import Arena, ring
from krasis.runtime.cuda.backend import CudaBackend
from krasis.runtime.cuda.colleague import Colleague
from krasis.runtime.cuda.costs import step_costs
from krasis.runtime.cuda.dense import DenseStream
from krasis.runtime.cuda.division import Divide, division
from krasis.runtime.cuda.experts import Hybrid
from krasis.runtime.cuda.figures import Started, Traffic
from krasis.runtime.cuda.follow import Follow, follows
from krasis.runtime.cuda.lanes import Lanes
from krasis.runtime.cuda.passes import Crossover, Way
from krasis.runtime.cuda.placed import place_dense
from krasis.runtime.cuda.residents import Residency, Residents
from krasis.runtime.cuda.room import check_room, free_bytes
from krasis.runtime.cuda.runner import Runner
from krasis.runtime.cuda.splits import Splits
from krasis.runtime.cuda.state import DeviceState
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.drafts import WIDTHS
from krasis.runtime.engine import Coming, Engine
from krasis.runtime.placement.memory import DENSE_BUFFERS, RING_BUFFERS
from krasis.runtime.placement.outline import LAYOUT, outline
from krasis.runtime.placement.plan import Plan, Wishes
from krasis.runtime.placement.plan import plan as plan_devices
from krasis.runtime.placement.residents import candidates
from krasis.runtime.rates import Rates, known
from krasis.runtime.state import SequenceState, undo_bytes
from krasis.runtime.tracer import Tracer
from krasis.runtime.weights import PackWeights

STEPS = (*WIDTHS, 1)
"""Tokens that are taken together in captured steps."""

CORES_LEFT = 2
"""Cores that are left to the driver and to Python: with all of them at work the CPU's experts took a third longer."""

PROMPT = 10_000
"""Tokens that most prompts have at most; longer ones may be taken in several passes."""


class CudaEngine(Engine):
    """Runs one sequence at a time, of at most `context` tokens, in `vram` bytes of `device`.

    `heat` says which experts are worth a place there, unless a `placement` is planned already; `threads` of the CPU
    compute what few tokens choose of the others, but for what `divide` leaves to the GPU, and are given up after
    `timeout` seconds without an answer; `residency` says whether places change hands as the text goes on. `started`
    tells what starting took. Raises FitError where the budget is too small, or more than what is free.
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
        threads: int | None = None,
        rates: Rates | None = None,
        placement: Plan | None = None,
        residency: Residency = "static",
        trace: bool = False,
        timeout: float = TIMEOUT,
        divide: Divide = division,
    ) -> None:
        self.started, self.device, self.spec, self.kv = Started(), device, read_spec(pack), kv or "bf16"
        self._family = models.of(self.spec)
        check_pack(pack, self._family, self.spec)
        self.segments, self.layers = planning.chosen(pack.manifest, (LAYOUT,)), self._family.states(self.spec)
        self.sequences, self.moments, self.notes = 1, None, []
        self.experts_of = self._family.moe_layers(self.spec)
        self.rates, self._before = rates or known(), Traffic()
        wishes = Wishes((vram,), context, self.kv, PROMPT)
        self._outline, self._heat = outline(pack.manifest, pack.path), heat
        self.placement = placement or self._planned(wishes)
        self.plan = planning.plan(self.spec, pack.manifest, context, self.kv, (LAYOUT,), load)
        self.tracer = Tracer(self.experts_of) if trace else None
        if device.type == "cuda":
            check_room(self.placement, free_bytes(device), lambda vram: self._planned(replace(wishes, vram=(vram,))))
        self.started.done("plan")
        self._store = HostStore(pack, device)
        self.notes += self._store.notes
        self.started.done("register")
        moving, notes = follows(residency, self.placement.resident_experts, self.experts_of, self._store)
        self.notes += notes
        self._place(pack, threads, timeout, divide, moving=moving)
        found, dense = candidates(self._outline, heat), self.placement.devices[0].dense
        away, layers = self.residents.addresses == 0, len(self.residents.partial)
        ways = Crossover.of(found, away, layers, dense, self._dense.bytes, self.rates)
        self.costs = step_costs(found, away, ways, self.placement.decode_parts["kernels"], undo_bytes(self.layers))
        self.runner = Runner(self.model, self._state, self.stream, self._dense, self._colleague, ways)
        self._synchronize()
        self.started.done("load")
        # Captured, choices could not be told to a tracer, nor could the host look up an embedding.
        if not trace and self._store.registered:
            self.runner.capture(device)
            self._check()
        if self.residents.moving:
            self.runner.follow = Follow(pack, self._store, self.residents, found.probability, Lanes(device))
        self._before = self.traffic()
        self.started.done("capture")

    def _place(self, pack: Pack, threads: int | None, timeout: float, divide: Divide, *, moving: bool) -> None:
        """Fill the device as the plan says."""
        planned, device = self.placement.devices[0], self.device
        workspace, lanes = planned.workspace, Lanes(device)
        away = [layer for layer in range(self.spec.num_layers) if layer not in planned.layers]
        buffers = ring("ring of dense weights", workspace.dense_ring, DENSE_BUFFERS, device)
        self._dense = DenseStream(pack, self._store, away, buffers, lanes)
        self.notes += self._dense.notes
        dense = place_dense(pack, self._dense.places, Arena("dense weights", planned.dense, device))
        hot = Arena("resident experts", planned.experts, device)
        self.residents = Residents(pack, self.experts_of, planned.residents, hot, device, moving=moving)
        buffers = ring("ring of streamed experts", workspace.expert_ring, RING_BUFFERS, device)
        self.stream = Stream(pack, self._store, self.residents, buffers, lanes)
        scratch, place = Scratch(device), torch.zeros(1, dtype=torch.int32, device=device)
        self.cpu = CpuBackend(threads or max(1, physical_cores() - CORES_LEFT))
        self._colleague = self._colleague_for(timeout)
        divided, passing = partial(divide, self.chosen), self._dense.bytes / self.spec.num_layers
        self._splits = Splits(pack, self._store, self.residents, divided, self.rates, passing)
        hybrid = Hybrid(pack, self.residents, self.stream, scratch, self._colleague, self._splits.of)
        self.backend = CudaBackend(
            place, scratch, hybrid.layer, reaches_host=self._store.registered, passes=self._dense.passes
        )
        self._state = DeviceState(self.layers, self.plan.context, self.chunk, self.kv, place)
        self.model = self._family.build(self.spec, PackWeights(dense, self.backend, tracer=self.tracer))
        self.model.blocks = self._dense.through(self.model.blocks)
        if self._colleague is not None:
            self._colleague.open()

    def _colleague_for(self, timeout: float) -> Colleague | None:
        """The CPU, where some experts are not resident."""
        if not self.residents.partial:
            return None
        return Colleague(self.cpu, self.chosen, self.spec.hidden_size, self.device, timeout)

    @property
    def chosen(self) -> int:
        """Experts of a token."""
        return int(msgspec.structs.asdict(self.spec)["experts_per_token"])

    def traffic(self) -> Traffic:
        """What moved since the start; waits for the device."""
        routed = self.runner.decoded * len(self.experts_of) * self.chosen
        found = Traffic(self.stream.copied, self._dense.copied, routed)
        if self._colleague is not None:
            mailbox, done = self._colleague.mailbox, self._colleague.work.all
            found = replace(found, missed=mailbox.missed, cpu_read=done.read, cpu_s=done.seconds)
            found = replace(found, missed_if_static=found.missed, waited_s=mailbox.waited)
        if (follow := self.runner.follow) is not None:
            found = replace(found, missed_if_static=follow.missed_if_static(), exchanged=follow.copied)
        return found - self._before

    @property
    def hit_rate(self) -> float | None:
        return self.traffic().hit_rate

    def planned(self, prompt: int) -> Plan:
        """The plan as it would be for prompts of `prompt` tokens."""
        return self._planned(replace(self.placement.wishes, prompt=prompt))

    def _planned(self, wishes: Wishes) -> Plan:
        return plan_devices(self._outline, self.rates, self._heat, wishes)

    @property
    def expert_bytes(self) -> int:
        """Of an expert's record, on average."""
        layers = [layer.experts for layer in self._outline.layers if layer.experts]
        return sum(experts.count * experts.bytes for experts in layers) // sum(experts.count for experts in layers)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that are taken together."""
        return self.placement.chunk

    def new_state(self) -> SequenceState:
        """The state of an empty sequence. There is one: those given before are lost."""
        if self._colleague is not None:
            self._splits.adapt(self._colleague.work)
        self._state.reset()
        return self._state

    @torch.inference_mode()
    def last_logits(self, ids: list[int], state: SequenceState) -> Tensor:
        """The same, on the device, and until the next call."""
        for chunk, way in self._passes(ids):
            found = self.runner.run(chunk, way)
        logits = self.model.logits(found.hidden[-1:]) if found.logits is None else found.logits
        self._check()
        return logits[-1]

    @torch.inference_mode()
    def step(self, ids: Sequence[int] | Tensor, state: SequenceState) -> Tensor:
        """The same, until the next call. Nothing is waited for; what fails is told by the tokens that come of it."""
        some = torch.as_tensor(ids, dtype=torch.int32, device=self.device)
        self._state.check(len(some))
        if len(some) > 1:
            self._state.attempt()
        found = self.runner.run(some, "few")
        assert found.logits is not None
        self._state.mixes = found.mixes
        return found.logits

    def coming(self, ids: Tensor) -> Coming:
        landed = ids.to("cpu", non_blocking=True)
        wait = self._mark()

        def get() -> int:
            wait()
            if self._colleague is not None:
                self._colleague.mailbox.check()
            return int(landed)

        return Coming(ids, get)

    def settle(self, state: SequenceState, position: int) -> None:
        self._synchronize()
        super().settle(state, position)

    @torch.inference_mode()
    def all_hidden(self, ids: list[int], state: SequenceState) -> Tensor:
        found = torch.cat([self.runner.run(chunk, way).hidden.clone() for chunk, way in self._passes(ids)])
        self._check()
        return found

    def next_hidden(self, ids: list[int], states: Sequence[SequenceState]) -> Tensor:
        """The same, of the one sequence there is."""
        (state,) = states
        return self.all_hidden(ids, state)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden).cpu()

    def close(self) -> None:
        """Give back what the device and the CPU were told to keep ready."""
        if self._colleague is not None:
            self._colleague.close()
        self._store.close()

    def _passes(self, ids: list[int]) -> Iterator[tuple[Tensor, Way]]:
        return self.runner.passes(torch.tensor(ids, dtype=torch.int32, device=self.device), self.chunk)

    def _check(self) -> None:
        """Raises KrasisError if the CPU failed the GPU."""
        if self._colleague is not None:
            self._synchronize()
            self._colleague.mailbox.check()

    def _synchronize(self) -> None:
        """Wait for the device."""
        self._mark()()

    def _mark(self) -> Callable[[], None]:
        """Waits, asleep, until what the device was given so far is done: the CPU's threads need every core."""
        if self.device.type != "cuda":
            return lambda: None
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        return done.synchronize
