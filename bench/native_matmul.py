"""How near products with packed matrices come to the memory bandwidth of this machine.

One token through experts of 2048 x 1536, cycled through more memory than any cache holds. Each round measures every
case and a plain read in turn; the median of the rounds is printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product

import torch

from krasis import layout as layouts
from krasis import quant
from krasis.native.cpu import Matrix, Pool

K, N = 2048, 1536


def expert(name: str, layout: str, group: int) -> Matrix:
    """One random expert, in groups of `group` where the codec takes them."""
    codec = quant.get(name)
    if not codec.QUANTIZED:
        return Matrix(name, layout, K, N, 0, codec.encode(torch.randn(N, K)))
    group = group if group in codec.GROUP_SIZES else codec.GROUP_SIZES[0]
    order, quantized = layouts.get(layout), codec.quantize(torch.randn(N, K), group)
    codes, scales = order.pack(quantized.codes, codec.BITS), order.pack_scales(quantized.scales, K, group)
    return Matrix(name, layout, K, N, group, codes, scales)


def copies(matrix: Matrix, total: int) -> list[Matrix]:
    """Copies of `matrix` of `total` bytes together."""
    count = max(1, total // weight_bytes(matrix))
    codes = matrix.codes.flatten().repeat(count).view(count, -1)
    scales = [None] * count if matrix.scales is None else matrix.scales.flatten().repeat(count).view(count, -1)
    shape = (matrix.codec, matrix.layout, matrix.k, matrix.n, matrix.group_size)
    return [Matrix(*shape, c, s) for c, s in zip(codes, scales, strict=True)]


def weight_bytes(matrix: Matrix) -> int:
    return matrix.codes.nbytes + (0 if matrix.scales is None else matrix.scales.nbytes)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def one_by_one(pool: Pool, matrices: list[Matrix], x: torch.Tensor) -> None:
    for matrix in matrices:
        pool.matmul(matrix, x)


def by_eights(pool: Pool, matrices: list[Matrix], x: torch.Tensor) -> None:
    for i in range(0, len(matrices), 8):
        pool.matmul_batch([(matrix, x, matrix.n) for matrix in matrices[i : i + 8]])


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(name, bytes read, what to time)."""
    pool, x = Pool(arguments.threads, arguments.isa), torch.randn(arguments.tokens, K)
    torch.set_num_threads(pool.threads)
    words = torch.ones(arguments.bytes // 8, dtype=torch.int64)
    yield "read", words.nbytes, words.sum
    for codec, layout in [*product(("int4", "mxfp4", "int8"), ("cpu", "marlin")), ("bf16", "plain")]:
        matrices = copies(expert(codec, layout, arguments.group), arguments.bytes)
        total = sum(map(weight_bytes, matrices))
        for how in (one_by_one, by_eights):
            yield (
                f"{codec} {layout} {how.__name__}",
                total,
                lambda how=how, matrices=matrices: how(pool, matrices, x),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: one a physical core")
    parser.add_argument("--isa", help="default: the machine's best")
    parser.add_argument("--group", type=int, default=128, help="weights a scale; of mxfp4 always 32")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of each case's weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = list(cases(arguments))
    times: dict[str, list[float]] = {name: [] for name, _, _ in found}
    for _ in range(arguments.rounds):
        for name, _, action in found:
            times[name].append(seconds(action))
    rates = {name: size / statistics.median(times[name]) / 1e9 for name, size, _ in found}
    report(rates, as_json=arguments.json)


def report(rates: dict[str, float], *, as_json: bool) -> None:
    rows = [{"case": name, "gb_per_s": rate, "of_read": rate / rates["read"]} for name, rate in rates.items()]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['case']:28} {row['gb_per_s']:7.1f} GB/s {row['of_read']:6.0%} of a plain read")


if __name__ == "__main__":
    main()
