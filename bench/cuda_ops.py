"""Microseconds of what lies between products on a GPU: a decoded token after 10,000 others, and a prompt of as many.

Calls are captured in a graph, over copies of what they read that no cache on the chip holds together, and the median of
many replays is printed, with the bytes that have to move and the operations of products beside it.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from krasis.native.cuda import ops
from krasis.native.cuda.attention import attention_few, attention_many, widen
from krasis.native.cuda.delta import conv_silu, delta_net
from krasis.native.cuda.ops import Cache
from krasis.native.delta_net import DeltaNet

LENGTH, CALLS, REPLAYS = 10_000, 16, 20
BEYOND_CACHE, LONG_FLOPS = 200_000_000, 1e11
KINDS = (("bf16", 2), ("fp8", 1))
EPS = 1e-6


@dataclass(frozen=True)
class Grouped:
    name: str
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    half: int
    experts: int
    chosen: int
    sinks: bool = False


MODELS = (
    Grouped("Qwen3-Coder-Next", 2048, 16, 2, 256, 32, 512, 10),
    Grouped("Qwen3-235B-A22B", 4096, 64, 4, 128, 64, 128, 8),
    Grouped("gpt-oss-120b", 2880, 64, 8, 64, 32, 128, 4, sinks=True),
)


@dataclass(frozen=True)
class Case:
    """Calls over one copy each of what they read; `moved` bytes and `flops` of one."""

    name: str
    calls: Sequence[Callable[[], object]]
    moved: float = 0
    flops: float = 0


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float32).bfloat16()


def f32(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def position(at: int) -> Tensor:
    return torch.tensor([at], dtype=torch.int32, device="cuda")


def angles(half: int) -> tuple[Tensor, Tensor]:
    return f32(LENGTH + 64, half), f32(LENGTH + 64, half)


def cache(kind: str, heads: int, dim: int) -> Cache:
    capacity = LENGTH + 64
    if kind == "bf16":
        return Cache(bf16(capacity, heads, dim))
    return Cache(bf16(capacity, heads, dim).to(torch.float8_e4m3fn), f32(capacity, heads).abs())


def copies_of(moved: float) -> int:
    return max(1, min(CALLS, int(BEYOND_CACHE / moved)))


def microseconds(case: Case) -> float:
    """The median of replays, over the calls in each."""
    long = case.flops > LONG_FLOPS
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    count = 1 if long else CALLS
    with torch.cuda.stream(stream):
        case.calls[0]()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                case.calls[i % len(case.calls)]()
        times = [_replay(graph) / count for _ in range(5 if long else REPLAYS)]
    return statistics.median(times)


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1000 * float(begin.elapsed_time(end))


def yardsticks() -> Iterator[Case]:
    """What the device itself does."""
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    yield Case("copy of 1 GiB", [partial(target.copy_, source)], 2 << 30)
    x = bf16(8192, 8192)
    yield Case("cuBLAS, 8192 x 8192 x 8192", [partial(torch.matmul, x, x)], 0, 2 * 8192**3)


def decode(model: Grouped) -> Iterator[Case]:
    """What a layer does of one token."""
    hidden, heads, kv_heads, dim = model.hidden, model.heads, model.kv_heads, model.dim
    x, y, weight, turns, at = f32(1, hidden), bf16(1, hidden), f32(hidden), angles(model.half), position(LENGTH - 1)
    yield Case("add_norm", [partial(ops.add_norm, x, y, weight, EPS)])
    qkv, q, norms = bf16(1, (heads + 2 * kv_heads) * dim), bf16(1, heads, dim), (f32(dim), f32(dim))
    sinks = f32(heads) if model.sinks else None
    for kind, size in KINDS:
        moved = 2 * LENGTH * kv_heads * (dim * size + 4 * (2 - size))
        pairs = [(cache(kind, kv_heads, dim), cache(kind, kv_heads, dim)) for _ in range(copies_of(moved))]
        shape = ((heads, kv_heads), dim, turns, norms, EPS, at)
        yield Case(f"turn_heads, {kind}", [partial(ops.turn_heads, qkv, *shape, pair) for pair in pairs])
        few = [partial(attention_few, q, k, v, 0.1, at, 0, sinks) for k, v in pairs]
        yield Case(f"attention_few, {kind}", few, moved, 4 * LENGTH * heads * dim)
        if model.sinks:
            near = [partial(attention_few, q, k, v, 0.1, at, 128, sinks) for k, v in pairs]
            yield Case(f"attention_few, {kind}, window 128", near, moved * 128 / LENGTH)
    yield Case("route", [partial(ops.route, f32(1, model.experts), None, model.chosen, "softmax", True, 1.0)])


def decode_latent() -> Iterator[Case]:
    """DeepSeek-V2-Lite."""
    heads, rank, half = 16, 512, 32
    dim, turns, weight = rank + 2 * half, angles(half), f32(rank)
    one, many = position(LENGTH - 1), position(LENGTH - 128)
    q, kv, absorbed = bf16(1, heads, 192), bf16(1, dim), bf16(128, heads, dim)
    for kind, size in KINDS:
        moved, flops = LENGTH * dim * size, 2 * LENGTH * heads * (dim + rank)
        caches = [cache(kind, 1, dim) for _ in range(copies_of(moved))]
        turn = [partial(ops.turn_latent, q, kv, turns, weight, EPS, one, c) for c in caches]
        yield Case(f"turn_latent, {kind}", turn)
        few = [partial(attention_few, absorbed[:1], c, c, 0.1, one, v_dim=rank) for c in caches]
        yield Case(f"attention_few, latents, {kind}", few, moved, flops)
        some = [partial(attention_few, absorbed, c, c, 0.1, many, v_dim=rank) for c in caches]
        yield Case(f"128 tokens of it, {kind}", some, moved, 128 * flops)


def recurrent(tokens: int) -> Iterator[Case]:
    """DeltaNet of Qwen3-Coder-Next."""
    qkvz, channels = bf16(tokens, 12288), 8192
    conv, past, memory = f32(4, channels), f32(3, channels), torch.zeros(32, 128, 128, device="cuda")
    x, z, beta_step = qkvz[:, :channels], qkvz[:, channels:], bf16(tokens, 64)
    net = DeltaNet(16, 32, 128, 128, -f32(32).exp(), f32(32), f32(128), EPS)
    yield Case("conv_silu", [partial(conv_silu, x, conv, past)], 4 * tokens * channels)
    yield Case("delta_net", [partial(delta_net, x, z, beta_step, net, memory)], 0, 6 * tokens * 32 * 128 * 128)


def prefill(model: Grouped) -> Iterator[Case]:
    """What a layer does of a prompt."""
    tokens, hidden, heads, kv_heads, dim = LENGTH, model.hidden, model.heads, model.kv_heads, model.dim
    x, y, weight = f32(tokens, hidden), bf16(tokens, hidden), f32(hidden)
    yield Case("add_norm", [partial(ops.add_norm, x, y, weight, EPS)], tokens * hidden * 12)
    qkv, norms, at = bf16(tokens, (heads + 2 * kv_heads) * dim), (f32(dim), f32(dim)), position(0)
    both = (cache("fp8", kv_heads, dim), cache("fp8", kv_heads, dim))
    turn = partial(ops.turn_heads, qkv, (heads, kv_heads), dim, angles(model.half), norms, EPS, at, both)
    yield Case("turn_heads, fp8", [turn], 4 * qkv.numel() + 2 * tokens * kv_heads * dim)
    wide = bf16(*both[0].values.shape)
    yield Case("widen", [partial(widen, both[0], at, tokens, 0, wide)], 3 * tokens * kv_heads * dim)
    q, k, v = bf16(tokens, heads, dim), bf16(tokens, kv_heads, dim), bf16(tokens, kv_heads, dim)
    flops = 2 * tokens * tokens * heads * dim
    yield Case("attention_many", [partial(attention_many, q, k, v, 0.1, at)], 0, flops)
    yield Case("torch's fused attention", [partial(fused, q, k, v)], 0, flops)
    if model.sinks:
        near = partial(attention_many, q, k, v, 0.1, at, 128, f32(heads))
        yield Case("attention_many, window 128", [near], 0, 4 * tokens * 128 * heads * dim)
    logits = f32(tokens, model.experts)
    route = partial(ops.route, logits, None, model.chosen, "softmax", True, 1.0)
    yield Case("route", [route], 4 * logits.numel())
    yield Case("swiglu", [partial(ops.swiglu, bf16(tokens, 2 * hidden))], 6 * tokens * hidden)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by torch."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def prefill_latent() -> Iterator[Case]:
    """DeepSeek-V2-Lite, keys and values made of the latents."""
    q, k, v = bf16(LENGTH, 16, 192), bf16(LENGTH, 16, 192), bf16(LENGTH, 16, 128)
    many = partial(attention_many, q, k, v, 0.1, position(0))
    yield Case("attention_many, 192 and 128", [many], 0, LENGTH**2 * 16 * 320)


def others() -> Iterator[Case]:
    """Once a token."""
    rows, ids, logits = bf16(151936, 2048), torch.tensor([77], dtype=torch.int32, device="cuda"), f32(151936)
    yield Case("embed", [partial(ops.embed, rows, ids)])
    yield Case("greatest", [partial(ops.greatest, logits, ids)], 4 * 151936)


def table(title: str, cases: Iterator[Case]) -> None:
    print(f"\n{title}\n{'':34} {'us':>10} {'GB/s':>8} {'TFLOP/s':>8}")
    for case in cases:
        us = microseconds(case)
        rate = f"{case.moved / us / 1e3:8.0f}" if case.moved else " " * 8
        print(
            f"{case.name:34} {us:10.1f} {rate} " + (f"{case.flops / us / 1e6:8.1f}" if case.flops else ""), flush=True
        )


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use")
    torch.manual_seed(0)
    table(torch.cuda.get_device_name(), yardsticks())
    for model in MODELS:
        table(f"{model.name}: a token after {LENGTH - 1:,}", decode(model))
    table("DeepSeek-V2-Lite: a token", decode_latent())
    table("Qwen3-Coder-Next: DeltaNet, a token", recurrent(1))
    table("once a token", others())
    for model in MODELS:
        table(f"{model.name}: {LENGTH:,} tokens", prefill(model))
    table("DeepSeek-V2-Lite: a prompt", prefill_latent())
    table("Qwen3-Coder-Next: DeltaNet, a prompt", recurrent(LENGTH))


if __name__ == "__main__":
    main()
