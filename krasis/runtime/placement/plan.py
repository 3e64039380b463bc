"""The plan for GPUs: every byte by purpose and device, the experts that lie there, and the speed to expect."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, NoReturn

import numpy as np

from krasis.errors import FitError
from krasis.heat.routing import Routing
from krasis.runtime.backend import KvDtype
from krasis.runtime.placement.memory import MIB, Held, Memory, Workspace, expert_ring
from krasis.runtime.placement.outline import Outline
from krasis.runtime.placement.residents import HOST, Candidates, Ints, assign, candidates
from krasis.runtime.placement.speed import Traffic, decode_seconds, prefill_seconds
from krasis.runtime.plan import check_context, gib
from krasis.runtime.rates import Rates

HOST_BYTES = 256 * MIB
"""Mailboxes, and what the CPU's workers hold."""

MOST_BUDGET = 1 << 53


class PlacementError(FitError):
    """A plan that does not fit. `would_fit` has the wishes that would, each by itself, as bytes or tokens."""

    def __init__(self, what: str, where: str, expected: str, would_fit: dict[str, int], hint: str) -> None:
        super().__init__(what, where=where, expected=expected, hint=hint)
        self.would_fit = would_fit


Mode = Literal["resident", "streamed"]
"""Whether all dense weights lie on each device, or those of some layers pass through it, one after the other, for every
token and every chunk of a prompt. Experts lie there only if all dense weights do: every token needs those."""


@dataclass(frozen=True)
class Wishes:
    """`vram` are the budgets of devices, one or more. `ram` is checked only where given.

    Prompts have `prompt` tokens as a rule, or the context's if that is less.
    """

    vram: tuple[int, ...]
    context: int
    kv: KvDtype
    prompt: int
    ram: int | None = None


@dataclass(frozen=True)
class DevicePlan:
    """Bytes by purpose, which sum to the budget, and the (layer, expert) that lie here, in that order.

    `layers` are those whose dense weights all lie here. Of the others norms and routers do, and so do the last norm and
    the head: that is as large as several layers, so what it passed through would take more than it does.
    """

    budget: int
    dense: int
    kv: int
    workspace: Workspace
    experts: int
    residents: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]

    @property
    def free(self) -> int:
        return self.budget - self.dense - self.kv - self.workspace.bytes - self.experts


@dataclass(frozen=True)
class Plan:
    """`ram` are bytes of host memory: the embedding, whole layers of experts where one is on no device, and dense
    weights on none, of which all but the embedding are registered; and `HOST_BYTES`.

    Parts of the seconds of a prompt, whose longest is its time, and of a token, whose sum is, as `speed` has them.
    """

    wishes: Wishes
    rates: Rates
    profiled: bool
    mode: Mode
    chunk: int
    devices: tuple[DevicePlan, ...]
    ram: int
    hit_rate: float | None
    layer_hit_rates: dict[int, float]
    load_s: float
    prefill_parts: dict[str, float]
    decode_parts: dict[str, float]

    @property
    def resident_experts(self) -> int:
        return sum(len(device.residents) for device in self.devices)

    @property
    def prefill_tok_s(self) -> float:
        return self.wishes.prompt / max(self.prefill_parts.values())

    @property
    def decode_tok_s(self) -> float:
        return 1 / sum(self.decode_parts.values())

    @property
    def limits(self) -> dict[str, str]:
        """What bounds prefill, decode, and the memory for weights."""
        short = self.mode == "streamed" or any(device.workspace.expert_ring for device in self.devices)
        return {
            "prefill": max(self.prefill_parts, key=self.prefill_parts.__getitem__),
            "decode": max(self.decode_parts, key=self.decode_parts.__getitem__),
            "memory": "vram" if short else "none",
        }


def plan(found: Outline, rates: Rates, routing: Routing | None, wishes: Wishes) -> Plan:
    """The plan for a pack, by a heat profile or taking all experts of a layer as equally likely.

    Raises PlacementError with the number that would fit, InputError for an unsuitable profile or context.
    """
    check_context(found.spec, wishes.context)
    wishes = replace(wishes, prompt=min(wishes.prompt, wishes.context))
    experts = candidates(found, routing)
    memory = Memory(found, wishes.context, wishes.kv, wishes.prompt)
    placement = _placement(memory, experts, wishes)
    if placement is None:
        _refuse(memory, wishes)
    made = _plan(memory, experts, placement, wishes, rates, profiled=routing is not None)
    if wishes.ram is not None and made.ram > wishes.ram:
        what = f"weights on no device need {gib(made.ram)} of memory"
        expected, hint = f"{gib(wishes.ram)} are given", f"--ram {made.ram} would fit"
        raise PlacementError(what, "--ram", expected, {"ram": made.ram}, hint)
    return made


def with_residents(made: Plan, found: Outline, share: float) -> Plan:
    """The plan of one device, all of whose experts are resident, with `share` of them alone, 0 to 1, all layers alike.

    It may take more than its budget: for tests of placements that no budget gives a small model.
    """
    (device,) = made.devices
    kept = tuple(pair for i, pair in enumerate(device.residents) if int((i + 1) * share) > int(i * share))
    ring = expert_ring(found) if len(kept) < len(device.residents) else 0
    return replace(
        made, devices=(replace(device, residents=kept, workspace=replace(device.workspace, expert_ring=ring)),)
    )


class _Placement(NamedTuple):
    mode: Mode
    held: list[Held]
    placed: Ints


def _placement(memory: Memory, experts: Candidates, wishes: Wishes) -> _Placement | None:
    """The first that fits of: all weights on devices, all dense weights there, dense weights streamed."""
    budgets = wishes.vram
    for stream_experts in (False, True):
        held = _held(memory, budgets, stream_experts=stream_experts)
        rooms = [budget - own.bytes - memory.outline.dense for budget, own in zip(budgets, held, strict=True)]
        if min(rooms) >= 0:
            placed = assign(experts, rooms)
            if stream_experts or HOST not in placed:
                return _Placement("resident", held, placed)
    held = _held(memory, budgets, stream_experts=True, stream_dense=True)
    if all(own.bytes + memory.outline.kept <= budget for budget, own in zip(budgets, held, strict=True)):
        return _Placement("streamed", held, assign(experts, [-1]))
    return None


def _held(memory: Memory, budgets: tuple[int, ...], *, stream_experts: bool, stream_dense: bool = False) -> list[Held]:
    return [memory.held(budget, stream_experts=stream_experts, stream_dense=stream_dense) for budget in budgets]


def _refuse(memory: Memory, wishes: Wishes) -> NoReturn:
    """Raises PlacementError with the least budget of a device, and the longest context if there is one."""
    smallest = min(wishes.vram)

    def fits(budget: int, context: int) -> bool:
        """Whatever the experts: only their ring must fit."""
        shorter = replace(memory, context=context, prompt=min(memory.prompt, context))
        return any(
            shorter.held(budget, stream_experts=True, stream_dense=dense).bytes + weights <= budget
            for dense, weights in ((False, memory.outline.dense), (True, memory.outline.kept))
        )

    least = bisect_left(range(MOST_BUDGET), True, key=lambda budget: fits(budget, wishes.context))
    most = bisect_left(range(1, wishes.context), True, key=lambda context: not fits(smallest, context))
    would_fit = {"vram": least} | ({"context": most} if most else {})
    hint = f"--vram {','.join([str(least)] * len(wishes.vram))} would fit" + f", or --context {most}" * bool(most)
    what = f"a context of {wishes.context} tokens needs {gib(least)} on each GPU"
    raise PlacementError(what, "--vram", f"{gib(smallest)} are given", would_fit, hint)


def _plan(
    memory: Memory, experts: Candidates, placement: _Placement, wishes: Wishes, rates: Rates, *, profiled: bool
) -> Plan:
    found, placed = memory.outline, placement.placed
    devices = tuple(_device(found, experts, placement, number, budget) for number, budget in enumerate(wishes.vram))
    chunk = min(held.chunk for held in placement.held)
    everywhere = set.intersection(*(set(device.layers) for device in devices))
    away = sum(layer.passing for i, layer in enumerate(found.layers) if i not in everywhere)
    most, least = (pick(device.dense for device in devices) for pick in (max, min))
    streamed = found.dense - least
    traffic = Traffic(found, experts, placed, len(devices), most, streamed, wishes.kv, wishes.prompt, chunk)
    cold = set(experts.layer[placed == HOST].tolist())
    registered = away + int(experts.bytes[np.isin(experts.layer, list(cold))].sum())
    filled = sum(device.dense + device.experts for device in devices)
    lanes = min(len(devices) * rates.pcie, max(rates.together, rates.pcie))
    return Plan(
        wishes=wishes,
        rates=rates,
        profiled=profiled,
        mode=placement.mode,
        chunk=chunk,
        devices=devices,
        ram=registered + found.embedding + HOST_BYTES,
        hit_rate=experts.hit_rate(placed != HOST),
        layer_hit_rates=experts.layer_hit_rates(placed != HOST),
        load_s=registered * rates.register_s + filled / lanes,
        prefill_parts=prefill_seconds(traffic, rates),
        decode_parts=decode_seconds(traffic, rates),
    )


def _device(found: Outline, experts: Candidates, placement: _Placement, number: int, budget: int) -> DevicePlan:
    held, mine = placement.held[number], placement.placed == number
    layers = _spread(found, budget - held.bytes - found.kept)
    return DevicePlan(
        budget=budget,
        dense=found.kept + sum(found.layers[layer].passing for layer in layers),
        kv=held.kv,
        workspace=held.workspace,
        experts=int(experts.bytes[mine].sum()),
        residents=tuple(zip(experts.layer[mine].tolist(), experts.expert[mine].tolist(), strict=True)),
        layers=layers,
    )


def _spread(found: Outline, room: int) -> tuple[int, ...]:
    """The layers whose dense weights lie in `room` bytes: as many as do at even distances, so that what passes through
    is copied all the while, and not only for some of the time.
    """
    count = len(found.layers)
    spread = (tuple(i * count // n for i in range(n)) for n in range(count, -1, -1))
    return next(layers for layers in spread if sum(found.layers[layer].passing for layer in layers) <= room)
