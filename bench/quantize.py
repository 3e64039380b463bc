"""How fast one core quantizes, against the arithmetic it must do, a plain read of the same bytes, and a peer.

Rates are GB/s of bfloat16 weights; errors are relative RMS. INT4 has two ceilings: the vector operations of its search
and coding, and all that it takes, over the rate at which this core issues such operations, measured in the same round.
The best of the rounds is printed. `--peer` is the path of a libggml.so: its quantizers get the same weights as float32,
converted beforehand.
"""

import argparse
import ctypes
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from krasis import layout as layouts
from krasis import quant
from krasis.native import cpu
from krasis.native.quantize import Target, quantize

CASES = [("int4", 128), ("int4", 64), ("int4", 32), ("int8", 128), ("int8", 32), ("mxfp4", 32)]
VECTORS = {"avx2": (16, ["-mavx2"]), "avx512": (32, ["-mavx512f", "-mavx512bw"])}
"""Of 16 bits in a register, and the flags of the compiler."""

# Of 8 candidates all take a multiplication and two products with their sums, 7 a clamp and 4 a second one; coding takes
# two multiplications, two clamps, the same sums and an addition.
SEARCH = 8 * 5 + 7 + 4 + 9
# For a register of bfloat16 pairs: 4 shuffles turn rows into columns, 2 operations make floats, 4 find the peak, 6 make
# whole numbers and 3 square them. A register of codes takes 4 shuffles and an operation to Marlin's order, 3 to the
# other.
AROUND = 4 + 2 + 4 + 6 + 3 + 5 + 3


@dataclass
class Case:
    name: str
    run: Callable[[], object]
    error: float | None = None
    registers: float = 0
    """Of 16-bit numbers that the weights fill, where ceilings are counted."""
    isa: str = ""


def gaussian(rows: int, columns: int) -> Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()


def trained(folder: Path) -> Tensor:
    """Matrices of a checkpoint, side by side in rows of 256."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
            found += [t.bfloat16().reshape(-1, 256) for t in tensors if t.ndim == 2 and t.numel() % 256 == 0]
    weight = torch.cat(found)
    return weight[: len(weight) // 128 * 128].contiguous()


def targets(codec: str, n: int, k: int, group: int) -> list[Target]:
    bits, found = quant.get(codec).BITS, []
    for name in layouts.names():
        order = layouts.get(name)
        codes = torch.zeros(order.packed_shape(k, n, bits), dtype=order.PACKED_DTYPE)
        scales = torch.zeros(order.scales_shape(k, n, group), dtype=quant.get(codec).SCALE_DTYPE)
        found.append(Target(name, codes, scales))
    return found


def ours(weight: Tensor, isas: list[str], importance: Tensor | None = None) -> Iterator[Case]:
    n, k = weight.shape
    for isa in isas:
        for codec, group in CASES:
            into = targets(codec, n, k, group)

            def run(codec: str = codec, group: int = group, into: list[Target] = into, isa: str = isa) -> Tensor:
                return quantize(codec, [weight], (n, k), group, into, importance=importance, isa=isa)

            error, energy = run().sum(0)[:2].tolist()
            registers = weight.numel() / VECTORS[isa][0] if codec == "int4" and isa in VECTORS else 0
            name = f"{codec} g{group} {isa}"
            yield Case(name, run, math.sqrt(error / energy), registers, isa)


def peers(weight: Tensor, path: Path) -> Iterator[Case]:
    library = ctypes.CDLL(str(path))
    library.ggml_init.restype, library.ggml_init.argtypes = ctypes.c_void_p, [_InitParams]
    library.ggml_init(_InitParams(1 << 16, None, False))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    source, (n, k) = weight.float(), weight.shape
    for name, number in (("q4_0", 2), ("q8_0", 8), ("q4_K", 12)):
        coded, decoded = torch.empty(2 * source.numel(), dtype=torch.uint8), torch.empty_like(source)

        def run(number: int = number, coded: Tensor = coded) -> int:
            return int(chunk(number, source.data_ptr(), coded.data_ptr(), 0, n, k, None))

        size = run()
        decode = library[f"dequantize_row_{name}"]
        decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        decode(coded.data_ptr(), decoded.data_ptr(), source.numel())
        error = float((decoded - source).double().norm() / source.double().norm())
        yield Case(f"peer {name}, {8 * size / source.numel():.1f} bits", run, error)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def vector_rate(isa: str, folder: Path) -> Callable[[], float]:
    """Measures operations a second."""
    library = folder / f"{isa}.so"
    flags = ["-O2", "-std=c++20", "-shared", "-fPIC", *VECTORS[isa][1]]
    source = Path(__file__).with_name("vector_rate.cpp")
    subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).run
    run.restype, run.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return lambda: _rate(run, 20_000_000)


def _rate(run: Callable[[int], int], operations: int) -> float:
    start = time.perf_counter()
    return run(operations) / (time.perf_counter() - start)


def measure(weight: Tensor, cases: list[Case], rounds: int, isas: list[str], folder: Path) -> list[dict[str, object]]:
    rates = {isa: vector_rate(isa, folder) for isa in isas if isa in VECTORS}
    words = torch.ones(weight.numel() // 4, dtype=torch.int64)
    cases = [Case("read", words.sum), *cases]
    best, fastest = dict.fromkeys((case.name for case in cases), math.inf), dict.fromkeys(rates, 0.0)
    for _ in range(rounds):
        for isa, rate in rates.items():
            fastest[isa] = max(fastest[isa], rate())
        for case in cases:
            start = time.perf_counter()
            case.run()
            best[case.name] = min(best[case.name], time.perf_counter() - start)
    rows: list[dict[str, object]] = []
    for case in cases:
        seconds = best[case.name]
        row: dict[str, object] = {"case": case.name, "gb_per_s": 2e-9 * weight.numel() / seconds, "error": case.error}
        for name, operations in (("of_search", SEARCH), ("of_all", SEARCH + AROUND)):
            ceiling = operations * case.registers / fastest[case.isa] if case.registers else 0
            row[name] = ceiling / seconds or None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint's folder in place of Gaussian weights")
    parser.add_argument("--rows", type=int, default=2048, help="of 2048 Gaussian weights")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--importance", action="store_true", help="weigh every column")
    parser.add_argument("--peer", type=Path, help="libggml.so")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weight = trained(arguments.model) if arguments.model else gaussian(arguments.rows, 2048)
    isas = [isa for isa in cpu.ISAS[1:] if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())] or ["scalar"]
    cases = list(ours(weight, isas, torch.rand(weight.shape[1]) if arguments.importance else None))
    cases += peers(weight, arguments.peer) if arguments.peer else []
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(weight, cases, arguments.rounds, isas, Path(folder))
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        error = f"{row['error']:8.3%} error" if row["error"] is not None else ""
        ceiling = f"{row['of_search']:5.0%} of search, {row['of_all']:4.0%} of all arithmetic" if row["of_all"] else ""
        print(f"{row['case']:24} {row['gb_per_s']:6.2f} GB/s {error} {ceiling}".rstrip())


if __name__ == "__main__":
    main()
