"""How long a plan takes, from the bytes and multiply-adds it moves and the rates of the machine.

A prompt is taken in passes, layer by layer: copies overlap kernels, so the slowest of its parts is its time. The parts
of a decoded token wait for each other, so its time is their sum; copies of dense weights alone go on beside the others,
and add what they take longer.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from krasis.models.blocks.latent_attention import HEADS_AT_ONCE
from krasis.models.family import ModelSpec
from krasis.models.state import Cache, LayerState
from krasis.runtime.backend import KvDtype
from krasis.runtime.placement.outline import Outline
from krasis.runtime.placement.residents import HOST, Candidates, Floats, Ints
from krasis.runtime.rates import Rates
from krasis.runtime.state import state_bytes

LAUNCHES = 24
"""Kernels of a layer of prefill, which is not captured."""
NODES = 10
"""Kernels of a layer of decode, which is one graph."""


@dataclass(frozen=True)
class Traffic:
    """What lies where: `dense` bytes on each of `devices`, through which the `streamed` ones pass. Experts lie where
    `placed` says. Prompts of `prompt` tokens are taken `chunk` at a time.
    """

    outline: Outline
    experts: Candidates
    placed: Ints
    devices: int
    dense: int
    streamed: int
    kv: KvDtype
    prompt: int
    chunk: int


def prefill_seconds(traffic: Traffic, rates: Rates) -> dict[str, float]:
    """Part -> seconds of a prompt, the longest of which is its time.

    - `pcie`: dense weights and experts on no device, those that a token of the pass is expected to choose, in each
      pass; devices share experts out, and the rate of host memory.
    - `arithmetic`: multiply-adds of weights and of attention, one device's share; recurrent layers' own not counted.
    - `device memory`: everything read once a pass. `launches`: kernels.
    """
    outline, devices = traffic.outline, traffic.devices
    whole, rest = divmod(traffic.prompt, traffic.chunk)
    passes = [traffic.chunk] * whole + [rest] * bool(rest)
    routed = sum(touched(traffic.experts, tokens) for tokens in passes) * traffic.experts.bytes
    missed = float(routed[traffic.placed == HOST].sum())
    lanes = min(devices * rates.pcie, max(rates.together, rates.pcie))
    layers = len(outline.layers)
    read = float(routed.sum()) / devices + len(passes) * outline.dense
    return {
        "pcie": len(passes) * traffic.streamed / rates.pcie + missed / lanes,
        "arithmetic": prefill_products(outline, traffic.prompt, devices) / rates.device_products,
        "device memory": read / rates.device_read,
        "launches": len(passes) * layers * LAUNCHES * rates.launch_s,
    }


def decode_seconds(traffic: Traffic, rates: Rates) -> dict[str, float]:
    """Part -> seconds of a token that follows `prompt` others; their sum is its time.

    - `missed experts`: expected bytes on no device over what the CPU and PCIe reach together.
    - `device memory`: dense weights, state and the experts expected there, on the device that has most of them.
    - `dense over pcie`: what those that pass through take longer than all else, at the rate of PCIe, or with the missed
      experts at what the CPU and PCIe reach together. `hand-off`: layers that may miss. `exchange`: between devices.
    - `kernels`: what begins and ends them.
    """
    outline = traffic.outline
    read = traffic.experts.probability * traffic.experts.bytes
    missing = traffic.placed == HOST
    hits = max((float(read[traffic.placed == device].sum()) for device in range(traffic.devices)), default=0.0)
    state = state_bytes(outline.states, traffic.prompt + 1, 1, traffic.kv)
    routed, missed = sum(layer.experts is not None for layer in outline.layers), float(read[missing].sum())
    parts = {
        "missed experts": missed / rates.together,
        "device memory": (traffic.dense + traffic.streamed + state + hits) / rates.device_read,
        "hand-off": len(np.unique(traffic.experts.layer[missing])) * rates.hand_off_s,
        "exchange": (routed * rates.exchange_s) if traffic.devices > 1 else 0.0,
        "kernels": len(outline.layers) * NODES * rates.node_s,
    }
    copies = max(traffic.streamed / rates.pcie, (traffic.streamed + missed) / rates.together)
    return parts | {"dense over pcie": max(0.0, copies - sum(parts.values())) if traffic.streamed else 0.0}


def prefill_products(outline: Outline, tokens: int, devices: int = 1) -> float:
    """Multiply-adds of a prompt on one of several devices, which share out the experts alone."""
    dense = sum(layer.products for layer in outline.layers)
    routed = outline.chosen * sum(layer.experts.products for layer in outline.layers if layer.experts)
    own = attention_products(outline.spec, outline.states, tokens)
    return tokens * (dense + routed / devices) + outline.head_products + own


def attention_products(spec: ModelSpec, states: list[LayerState], tokens: int) -> int:
    """Multiply-adds of attention itself for a prompt: dimensions of a key and a value, a head and pair of tokens."""
    heads = int(msgspec.structs.asdict(spec)["num_heads"])
    return sum(
        heads * (layer.expanded // HEADS_AT_ONCE or sum(dim for _, dim in layer.rows)) * _pairs(tokens, layer.window)
        for layer in states
        if isinstance(layer, Cache)
    )


def _pairs(tokens: int, window: int) -> int:
    """(query, key) pairs of causal attention that looks back over `window` tokens, 0 for all."""
    near = min(tokens, window or tokens)
    return near * (near + 1) // 2 + (tokens - near) * near


def touched(experts: Candidates, tokens: int) -> Floats:
    """float64 [experts]: the probability that one of `tokens` tokens chooses it, taken as independent."""
    return 1 - (1 - np.minimum(experts.probability, 1.0)) ** tokens
