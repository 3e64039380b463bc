"""Products with packed matrices on the GPU, on the shapes of real models, beside what the device does at best.

Prefill: TFLOP/s of dense products and of routed experts (up, down, and all of it with sorting and the weighted sum),
for every tile, beside cuBLAS in bfloat16 on a dense product of as many operations. Decode: GB/s of weight bytes, codes
and scales, of matrices and experts that go round more memory than L2 holds, in device memory and in pinned host memory,
beside a copy on the device (bytes read and written) and over PCIe. Calls are captured in CUDA graphs; medians.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from krasis.layout.marlin import padded_shape
from krasis.native.cuda.experts import ExpertForm, batch, combine, experts_down, experts_few, experts_up, sort
from krasis.native.cuda.gemm import TILES, Form, Product, Products, Scratch, Tile, linear, linear_few

CUDA = torch.device("cuda")
CALLS = 8
"""Of a graph."""


@dataclass(frozen=True)
class Model:
    """Logical sizes: hidden, of an expert, experts, experts of a token, and a dense matrix (k, n)."""

    hidden: int
    size: int
    experts: int
    chosen: int
    dense: tuple[int, int]


MODELS = {
    "deepseek-v2-lite": Model(2048, 1408, 64, 6, (2048, 3072)),
    "qwen3-coder-next": Model(2048, 512, 512, 10, (2048, 12288)),
    "gpt-oss-120b": Model(2880, 2880, 128, 4, (4096, 2880)),
    "qwen3-235b-a22b": Model(4096, 1536, 128, 8, (4096, 9216)),
}
HEAD = 2048, 151936


def random_bytes(size: int, device: torch.device | str = CUDA, pinned: bool = False) -> Tensor:
    """Codes are any bytes, scales those of bfloat16 of about 2^-7."""
    block = (torch.randint(0x70, 0x80, (1 << 20,)) | 0x3B00).to(torch.int16).view(torch.uint8)
    block[: 1 << 16] = torch.randint(0, 256, (1 << 16,), dtype=torch.uint8) & 0xBB
    found = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
    block = block.to(device)
    for start in range(0, size, len(block)):
        part = found[start : start + len(block)]
        part.copy_(block[: len(part)])
    return found


def milliseconds(calls: Sequence[Callable[[], object]], repeats: int) -> float:
    """Of one of the calls, in the median replay of a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) / len(calls)


def form(codec: str, k: int, n: int) -> Form:
    """Padded, in groups of 128 where they fit, of MXFP4 in those of 32."""
    group = 32 if codec == "mxfp4" else 128
    return Form(codec, *padded_shape(k, n, group), group)


@dataclass(frozen=True)
class Experts:
    """Records of a layer's experts."""

    form: ExpertForm
    size: int
    memory: Tensor
    table: Tensor

    @property
    def weights(self) -> int:
        """Bytes of codes and scales of an expert."""
        matrices = self.form.w13, self.form.w2
        return sum(matrix.code_bytes + matrix.scale_bytes for matrix in matrices)


def experts(model: Model, codec: str, count: int, pinned: bool = False) -> Experts:
    w2 = form(codec, model.size, model.hidden)
    w13 = form(codec, model.hidden, 2 * w2.k)
    offsets = [0]
    for matrix in (w13, w2):
        for size in (matrix.code_bytes, matrix.scale_bytes):
            offsets.append(-(-(offsets[-1] + size) // 256) * 256)
    step = -(-offsets.pop() // 4096) * 4096
    memory = random_bytes(count * step, "cpu" if pinned else CUDA, pinned)
    table = memory.data_ptr() + torch.arange(count, device=CUDA) * step
    return Experts(ExpertForm(model.hidden, w13, w2, *offsets), step, memory, table)


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, device=CUDA).bfloat16()


def product(matrix: Form, memory: Tensor, at: int, n_out: int) -> Products:
    codes, end = at + matrix.code_bytes, at + matrix.code_bytes + matrix.scale_bytes
    return Products([Product(matrix, memory[at:codes], memory[codes:end], n_out)])


def teraflops(flops: float, ms: float) -> float:
    return flops / ms / 1e9


def cublas(m: int, k: int, n: int, repeats: int) -> float:
    x, w = bf16(m, k), bf16(n, k)
    return teraflops(2 * m * k * n, milliseconds([lambda: x @ w.t()], repeats))


def prefill_dense(tokens: int, codecs: list[str], repeats: int) -> Iterator[str]:
    for name, model in MODELS.items():
        k, n = model.dense
        beside = cublas(tokens, k, n, repeats)
        for codec in codecs:
            matrix = form(codec, k, n)
            products = product(matrix, random_bytes(matrix.code_bytes + matrix.scale_bytes), 0, n)
            x, y = bf16(tokens, k), torch.empty(tokens, n, dtype=torch.bfloat16, device=CUDA)
            rates = []
            for tile in TILES:
                ms = milliseconds([partial(linear, products, x, y, tile)], repeats)
                rates.append(f"{tile} {teraflops(2 * tokens * k * n, ms):5.0f}")
            yield f"dense {k}x{n} {codec} {tokens:6} tokens: {'  '.join(rates)}  cuBLAS {beside:5.0f}  ({name})"


def around(ids: Tensor, all_experts: Tensor, tile: Tile, y: Tensor, weights: Tensor, out: Tensor) -> None:
    """What lies around the products of routed experts."""
    batch(sort(ids, len(all_experts)), all_experts, tile)
    combine(y, ids, weights, out)


def prefill_experts(tokens: int, codecs: list[str], repeats: int) -> Iterator[str]:
    for name, model in MODELS.items():
        total, all_experts = tokens * model.chosen, torch.arange(model.experts, dtype=torch.int32, device=CUDA)
        ids = torch.rand(tokens, model.experts, device=CUDA).topk(model.chosen).indices.int()
        weights, x = torch.rand(tokens, model.chosen, device=CUDA), bf16(tokens, model.hidden)
        beside = cublas(total, model.hidden, 2 * model.size, repeats)
        for codec in codecs:
            layer = experts(model, codec, model.experts)
            h, y = bf16(total, layer.form.size), bf16(total, model.hidden)
            out = torch.zeros(tokens, model.hidden, device=CUDA)
            one = total * model.hidden * model.size * 2
            for tile in TILES:
                part = batch(sort(ids, model.experts), all_experts, tile)
                calls = (
                    partial(experts_up, layer.form, layer.table, part, x, h),
                    partial(experts_down, layer.form, layer.table, part, h, y),
                    partial(around, ids, all_experts, tile, y, weights, out),
                )
                times = [milliseconds([call], repeats) for call in calls]
                yield (
                    f"experts {name} {codec} {tokens:6} tokens {tile:8}: up {teraflops(2 * one, times[0]):5.0f}  "
                    f"down {teraflops(one, times[1]):5.0f}  all {teraflops(3 * one, sum(times)):5.0f}  "
                    f"cuBLAS {beside:5.0f}  around {times[2]:.3f} ms"
                )


def copies(repeats: int) -> str:
    a, host = (
        torch.empty(1 << 29, dtype=torch.uint8, device=CUDA),
        torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True),
    )
    b = torch.empty_like(a)
    device = 2 * a.nbytes / milliseconds([lambda: b.copy_(a)], repeats) / 1e6
    pcie = host.nbytes / milliseconds([lambda: a[: len(host)].copy_(host, non_blocking=True)], repeats) / 1e6
    return f"copy on the device {device:.0f} GB/s, from pinned host memory {pcie:.1f} GB/s"


def decode_dense(codecs: list[str], tokens: list[int], blocks: int, repeats: int) -> Iterator[str]:
    memory, scratch = random_bytes(1 << 30), Scratch(CUDA, blocks)
    for k, n in [HEAD, *(model.dense for model in MODELS.values()), (4096, 2048)]:
        for codec in codecs:
            matrix = form(codec, k, n)
            size = matrix.code_bytes + matrix.scale_bytes
            step = -(-size // 256) * 256
            count = max(1, min(64, len(memory) // step))
            all_products = [product(matrix, memory, i * step, n) for i in range(count)]
            rates = []
            for m in tokens:
                x, y = bf16(m, k), torch.empty(m, n, device=CUDA)
                calls = [partial(linear_few, p, x, y, scratch) for p in all_products]
                ms = milliseconds(calls, repeats)
                rates.append(f"{m} tokens {ms * 1e3:7.1f} us {size / ms / 1e6:6.0f} GB/s")
            yield f"dense {k}x{n} {codec}: {'  '.join(rates)}"


def decode_experts(codecs: list[str], tokens: list[int], pinned: bool, blocks: int, repeats: int) -> Iterator[str]:
    scratch = Scratch(CUDA, blocks)
    for name, model in MODELS.items():
        for codec in codecs:
            layer = experts(model, codec, min(model.experts, 16 * model.chosen if pinned else 128), pinned)
            rates = []
            for m in tokens:
                h, out = bf16(m * model.chosen, layer.form.size), torch.zeros(m, model.hidden, device=CUDA)
                x, weights = bf16(m, model.hidden), torch.rand(m, model.chosen, device=CUDA)
                calls: list[Callable[[], object]] = []
                for _ in range(CALLS):
                    # Tokens that choose different experts, as far as there are so many.
                    order = torch.randperm(len(layer.table)).repeat(m)[: m * model.chosen]
                    ids = order.view(m, -1).int().to(CUDA)
                    few = partial(experts_few, layer.form, layer.table, x, ids, weights, h, out, scratch)
                    calls.append(few)
                ms, moved = milliseconds(calls, repeats), m * model.chosen * layer.weights
                rates.append(f"{m} tokens {ms * 1e3:7.1f} us {moved / ms / 1e6:7.1f} GB/s")
            yield f"experts {name} {codec} {'host' if pinned else 'device'}: {'  '.join(rates)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", choices=("int4", "int8", "mxfp4"), default=["int4", "int8"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[10_000, 1_000], help="of prefill")
    parser.add_argument("--few", nargs="+", type=int, default=[1, 4], help="tokens of decode")
    parser.add_argument("--blocks", nargs="+", type=int, default=[132, 264], help="that decode splits sums into")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--parts", nargs="+", choices=("prefill", "decode", "host"), default=["prefill", "decode", "host"]
    )
    arguments = parser.parse_args()
    codecs, repeats = arguments.codecs, arguments.repeats
    print(torch.cuda.get_device_name(), "|", copies(repeats), flush=True)
    if "prefill" in arguments.parts:
        print("TFLOP/s")
        for tokens in arguments.tokens:
            for line in prefill_dense(tokens, codecs, repeats):
                print(line, flush=True)
            for line in prefill_experts(tokens, codecs, repeats):
                print(line, flush=True)
    for blocks in arguments.blocks:
        print(f"k split into {blocks} blocks or more")
        if "decode" in arguments.parts:
            for line in decode_dense(codecs, arguments.few, blocks, repeats):
                print(line, flush=True)
            for line in decode_experts(codecs, arguments.few, False, blocks, repeats):
                print(line, flush=True)
        if "host" in arguments.parts:
            for line in decode_experts(codecs, arguments.few[:1], True, blocks, repeats):
                print(line, flush=True)


if __name__ == "__main__":
    main()
