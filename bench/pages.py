"""What pages cost: reading memory of every kind, and decoding a pack mapped and copied.

Each kind is read once for its faults and then again and again, all kinds in turn; the best of the rounds is printed,
since others on the machine only ever slow a read. With PACK, `krasis bench` runs in processes of its own, mapped and
copied in turn.
"""

import argparse
import json
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import measure
import torch
from torch import Tensor

from krasis.native.cpu import Pool
from krasis.pack.anonymous import anonymous

CHUNK = 1 << 23
SHARED = Path("/dev/shm")


def small_pages(size: int) -> Tensor:
    """Anonymous memory in pages of 4 KiB."""
    whole = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(whole, dtype=torch.uint8)


def mapped(path: Path, *, advised: bool) -> Tensor:
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if advised:
        whole.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(whole, dtype=torch.uint8)


@contextmanager
def file_of(folder: Path, size: int) -> Iterator[Path]:
    """A file of random bytes, on the disk."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(size // CHUNK):
            file.write(os.urandom(CHUNK))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def kinds(disk: Path, shared: Path, size: int) -> dict[str, Callable[[], Tensor]]:
    """Name -> memory of that kind, new at every call. Anonymous memory is written, so that its pages are there."""

    def cold(*, advised: bool) -> Tensor:
        measure.drop([disk])
        return mapped(disk, advised=advised)

    return {
        "anonymous, 4 KiB": lambda: small_pages(size).fill_(1),
        "anonymous, 2 MiB": lambda: anonymous(size).fill_(1),
        "file, not in memory": lambda: cold(advised=False),
        "file, in memory": lambda: mapped(disk, advised=False),
        "file, not in memory, advised": lambda: cold(advised=True),
        "file, in memory, advised": lambda: mapped(disk, advised=True),
        "tmpfs": lambda: mapped(shared, advised=False),
        "tmpfs, advised": lambda: mapped(shared, advised=True),
    }


def rates(make: Callable[[], Tensor], pools: list[Pool], passes: int) -> dict[str, float]:
    """GB a second of the first read, by all threads, and the best of later ones by each pool."""
    memory = make()
    found = {"first": rate(pools[-1], memory)}
    return found | {f"{pool.threads}": max(rate(pool, memory) for _ in range(passes)) for pool in pools}


def rate(pool: Pool, memory: Tensor) -> float:
    begin = time.perf_counter()
    pool.read(memory)
    return memory.nbytes / (time.perf_counter() - begin) / 1e9


def reading(arguments: argparse.Namespace) -> list[dict[str, object]]:
    pools = [Pool(threads) for threads in sorted({1, *arguments.threads})]
    best: dict[str, dict[str, float]] = {}
    with file_of(arguments.folder, arguments.bytes) as disk, file_of(SHARED, arguments.bytes) as shared:
        for _ in range(arguments.rounds):
            for name, make in kinds(disk, shared, arguments.bytes).items():
                found = rates(make, pools, arguments.passes)
                best[name] = {key: max(value, best.get(name, {}).get(key, 0)) for key, value in found.items()}
    return [{"memory": name, "gb_per_s": found} for name, found in best.items()]


def decoding(arguments: argparse.Namespace) -> list[dict[str, object]]:
    size = ("--prompt-tokens", 32, "--decode-tokens", 128, "--no-agreement")
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for load in ("mapped", "copied"):
            found = measure.krasis("bench", arguments.pack, "--load", load, *size).result
            best[load] = max(best.get(load, 0), found["decode_tok_s"]["max"])
    return [{"load": load, "decode_tok_s": speed} for load, speed in best.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--folder", type=Path, default=Path(), help="where the file of the disk goes")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of each kind of memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=5, help="reads in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    # torch has no read-only tensors; nothing here writes to a mapped file.
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    found = {"reading": reading(arguments), "decoding": decoding(arguments) if arguments.pack else []}
    if arguments.json:
        print(json.dumps(found | {"machine": measure.machine(arguments.folder)}))
        return
    for row in found["reading"]:
        print(f"{row['memory']:30}", *(f"{name}: {value:6.1f}" for name, value in row["gb_per_s"].items()), "GB/s")
    for row in found["decoding"]:
        print(f"{row['load']:30} {row['decode_tok_s']:.1f} tok/s")


if __name__ == "__main__":
    main()
