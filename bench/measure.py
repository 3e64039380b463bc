"""What benchmarks of whole commands share: runs in processes of their own, peak memory, the disk's own speed."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.01
CHUNK = 1 << 23


@dataclass(frozen=True)
class Run:
    """A command that ended well: its --json, wall seconds with start and end of the process, peak anonymous bytes."""

    result: dict[str, Any]
    wall: float
    peak: int


def krasis(*arguments: object) -> Run:
    """Run a command with --json in a process of its own. Ends the benchmark where the command fails."""
    command = [sys.executable, "-m", "krasis", *map(str, arguments), "--json"]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = _Peak(process.pid)
        out, _ = process.communicate()
        wall = time.perf_counter() - begin
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{errors.read()}")
    return Run(json.loads(out), wall, peak.stop())


class _Peak:
    """Watches the anonymous memory of a process and all it started."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most = pid, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            self._most = max(self._most, sum(map(_anonymous, _family(self._pid))))


def _family(pid: int) -> list[int]:
    """A process and its descendants, none where it is gone."""
    try:
        lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [pid, *(found for children in lists for child in children for found in _family(int(child)))]


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def drop(paths: Iterable[Path]) -> None:
    """Take files out of the page cache, where they lie on a disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(paths: list[Path], jobs: int) -> float:
    """Bytes a second of reading files whole, and throwing them away."""

    def read(part: tuple[Path, int]) -> int:
        path, start = part
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.readinto(buffers[threading.get_ident()])

    buffers: dict[int, bytearray] = {}
    parts = [(path, start) for path in paths for start in range(0, path.stat().st_size, CHUNK)]

    def own_buffer() -> None:
        buffers[threading.get_ident()] = bytearray(CHUNK)

    with ThreadPoolExecutor(jobs, initializer=own_buffer) as pool:
        begin = time.perf_counter()
        total = sum(pool.map(read, parts))
        return total / (time.perf_counter() - begin)


def write_rate(folder: Path, size: int) -> float:
    """Bytes a second of writing a file of random bytes and syncing it."""
    path, chunk = folder / "write.bin", os.urandom(CHUNK)
    try:
        begin = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(size // CHUNK):
                file.write(chunk)
            os.fsync(file.fileno())
        return size // CHUNK * CHUNK / (time.perf_counter() - begin)
    finally:
        path.unlink(missing_ok=True)


def repeated(action: Callable[[], float], runs: int) -> dict[str, float]:
    """The spread of a figure over several runs."""
    return spread([action() for _ in range(runs)])


def spread(figures: list[float]) -> dict[str, float]:
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


def machine(folder: Path) -> dict[str, Any]:
    """Where figures come from. A load of more than 0 before the benchmark starts means that others share the cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    free = shutil.disk_usage(folder).free
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "free_bytes": free}
