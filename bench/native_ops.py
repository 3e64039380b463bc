"""Microseconds of what lies between products, by torch and natively, and of a whole decoded token.

Operations are those of one token at the shapes of `--configs`; the best of many calls is printed. With `--packs`, the
time of a token is printed twice: whole, and with every product left out, which is what a layer costs beside them.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krasis import models
from krasis.models.blocks.rope import Rope, RopeSpec
from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import DeltaForm, DeltaShape, HeadShape, Ops, Routing, TorchOps
from krasis.models.state import Cached
from krasis.native.cpu import Pool
from krasis.native.ops import NativeOps
from krasis.pack.reader import Pack
from krasis.runtime.attention import fast_attention
from krasis.runtime.backend import ExpertRecords, PackedMatrix
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.engine import Engine
from krasis.runtime.heads import PackedHeads
from krasis.runtime.ops import CpuOps

CALLS, TOKENS, WARM = 300, 100, 20
EPS = 1e-6
Case = tuple[str, Callable[[Ops], object]]


def best_us(action: Callable[[], object], calls: int = CALLS) -> float:
    """Of `calls` calls, in microseconds."""
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best


def common(spec: Any) -> Iterator[Case]:
    """What every family has."""
    x, weight = torch.randn(1, spec.hidden_size), torch.randn(spec.hidden_size)
    yield "norm", lambda ops: ops.norm(x, weight, EPS)
    yield "add and norm", lambda ops: ops.add_norm(x, x.clone(), weight, EPS)
    logits, scores = torch.randn(1, spec.num_experts), "logits" if hasattr(spec, "windows") else "softmax"
    routing = Routing(spec.experts_per_token, scores)  # type: ignore[arg-type]
    yield f"route {spec.num_experts}", lambda ops: ops.route(logits, None, routing)


def grouped(spec: Any) -> Iterator[Case]:
    """Grouped-query attention."""
    shape = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
    normed = not hasattr(spec, "windows")
    norms = (torch.randn(shape.dim), torch.randn(shape.dim)) if normed else None
    angles = Rope(shape.dim, spec.rope).angles(100, 1)
    x = torch.randn(1, (shape.heads + 2 * shape.kv_heads) * shape.dim)
    yield (
        f"turn {shape.heads}+{shape.kv_heads} heads of {shape.dim}",
        lambda ops: ops.turn_heads(x, shape, angles, norms, EPS),
    )


def latent(spec: Any) -> Iterator[Case]:
    """Latent attention."""
    angles, norm = Rope(spec.rope_dim, RopeSpec(theta=1e4)).angles(100, 1), torch.randn(spec.kv_lora_rank)
    q = torch.randn(1, spec.num_heads, spec.nope_dim + spec.rope_dim)
    kv = torch.randn(1, spec.kv_lora_rank + spec.rope_dim)
    yield f"turn {spec.num_heads} latent heads", lambda ops: ops.turn_latent(q, kv, angles, norm, EPS)


def delta(spec: Any) -> Iterator[Case]:
    """DeltaNet."""
    heads, width = spec.linear_value_heads, spec.linear_value_dim
    shape = DeltaShape(spec.linear_key_heads, heads, spec.linear_key_dim, width)
    form = DeltaForm(shape, -torch.rand(heads), torch.randn(heads), torch.randn(width), EPS)
    past, memory = torch.zeros(spec.conv_width - 1, spec.channels), torch.zeros(heads, shape.key_dim, width)
    qkv, weight, beta = (
        torch.randn(1, spec.channels),
        torch.randn(spec.conv_width, spec.channels),
        torch.randn(1, 2 * heads),
    )
    z, out = torch.randn(1, heads * width), torch.randn(1, spec.num_heads * spec.head_dim)
    yield f"conv {spec.channels}", lambda ops: ops.conv_silu(qkv, weight, past)
    yield f"DeltaNet {heads} x {shape.key_dim} x {width}", lambda ops: ops.delta_net(qkv, z, beta, form, memory)
    yield "gate", lambda ops: ops.gate(out, out)


def operations(spec: Any) -> Iterator[Case]:
    yield from common(spec)
    yield from latent(spec) if hasattr(spec, "kv_lora_rank") else grouped(spec)
    if hasattr(spec, "linear_value_heads"):
        yield from delta(spec)
    if getattr(spec, "shared_size", 0):
        gate_up = torch.randn(1, 2 * spec.shared_size)
        yield f"swiglu {spec.shared_size}", lambda ops: ops.swiglu(gate_up)


def attentions(spec: Any, native: NativeOps) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """(name, by torch, natively) of one token over a bfloat16 cache."""
    mla = hasattr(spec, "kv_lora_rank")
    heads, dim = (1, spec.kv_lora_rank + spec.rope_dim) if mla else (spec.num_kv_heads, spec.head_dim)
    q, scale = torch.randn(1, spec.num_heads, dim), dim**-0.5
    scale = dim**-0.5
    for length in (256, 4096):
        k = Cached(torch.randn(length, heads, dim).bfloat16())
        v = k.leading(spec.kv_lora_rank) if mla else Cached(torch.randn(length, heads, dim).bfloat16())
        yield (
            f"attention over {length}",
            lambda k=k, v=v: fast_attention(q, k, v, scale),
            lambda k=k, v=v: native.attention(q, (k.values, None), (v.values, None), scale),
        )


class WithoutProducts(CpuBackend):
    """Gives zeros instead."""

    def linear(self, matrix: PackedMatrix, *, wide: bool = False) -> Linear:
        return self.linears([matrix])

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        columns = sum(matrix.spec.shape[0] for matrix in matrices)
        return lambda x: torch.zeros((x.shape[0], columns))

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        rows = matrices[0].spec.shape[0]
        return PackedHeads(matrices, lambda x: torch.zeros((x.shape[0], len(matrices), rows)))

    def experts(
        self, layer: int, records: ExpertRecords, activation: Activation, beside: Linear | None
    ) -> Experts | None:
        return lambda x, ids, weights: torch.zeros_like(x)


def token_us(pack: Pack, backend: CpuBackend, context: int) -> tuple[float, int]:
    """(microseconds of a token after `context` others, layers)."""
    engine = Engine(pack, backend, context=context + WARM + TOKENS)
    state = engine.new_state()
    engine.last_logits([1] * context, state)
    for _ in range(WARM):
        engine.last_logits([1], state)
    return best_us(lambda: engine.last_logits([1], state), TOKENS), engine.spec.num_layers


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, nargs="*", default=[], help="config.json of models")
    parser.add_argument("--packs", type=Path, nargs="*", default=[], help="packs to decode a token of")
    parser.add_argument("--context", type=int, default=1000, help="tokens before the one that is timed")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    arguments = parser.parse_args()
    pool = Pool(arguments.threads, arguments.isa)
    torch.set_num_threads(pool.threads)
    native = NativeOps(pool)
    print(f"{pool.threads} threads, {pool.isa}; microseconds by torch and natively")
    for path in arguments.configs:
        tree = json.loads(path.read_text())
        tree.pop("quantization_config", None)
        spec = models.get(tree["model_type"]).parse_config(tree)
        cases = [
            (name, *(lambda ops=ops, run=run: run(ops) for ops in (TorchOps(), CpuOps(native))))
            for name, run in operations(spec)
        ]
        for name, torch_form, native_form in [*cases, *attentions(spec, native)]:
            print(f"{path.stem:18} {name:30} {best_us(torch_form):8.1f} {best_us(native_form):8.1f}")
    for path in arguments.packs:
        pack = Pack(path)
        for what, kind in (("whole", CpuBackend), ("without products", WithoutProducts)):
            us, layers = token_us(pack, kind(pool.threads), arguments.context)
            print(f"{path.name:18} {'token, ' + what:30} {us:8.1f} {us / layers:8.1f} a layer")


if __name__ == "__main__":
    main()
