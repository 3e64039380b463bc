"""Measure the systems in turn, each in a process of its own, and tell them side by side."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import spread
from bench.peers import install
from bench.peers.model import Files

ROOT = Path(__file__).parents[2]
GROUPS = (32, 128)
TYPES = {4: "Q4_0", 8: "Q8_0"}
QUIET = 0.1
"""Cores that others may take of an undisturbed run."""


@dataclass(frozen=True)
class System:
    """`python` runs `runner` with `arguments`; it needs `module` and the file or folder `model`."""

    name: str
    python: Path
    runner: str
    module: str
    model: Path
    arguments: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it can't be run."""
        if not self.model.exists():
            return f"{self.model} is not there"
        return None if install.has(self.python, self.module) else f"{self.module} is not installed"

    def run(self, threads: int) -> dict[str, Any]:
        """What the runner found, and as `others` how many cores other processes took meanwhile."""
        start, busy = time.perf_counter(), cpu_seconds()
        found = call(self.python, self.runner, *self.arguments, self.model, "--threads", threads)
        return found | {"others": (cpu_seconds() - busy) / (time.perf_counter() - start)}


def systems(work: Path) -> list[System]:
    """All there are, those of the same bits together."""
    files, own, peers = Files(work), Path(sys.executable), install.python(work)
    found = []
    for bits, kind in TYPES.items():
        gguf = files.gguf(kind)
        for group in GROUPS:
            pack = files.pack(bits, group)
            found.append(System(f"krasis INT{bits}, groups of {group}", own, "run_krasis", "krasis", pack))
        for name, package, flags in (
            ("llama.cpp", "llama_cpp", ()),
            ("ik_llama.cpp", "ik_llama_cpp", ()),
            ("ik_llama.cpp repacked", "ik_llama_cpp", ("--repacked",)),
        ):
            found.append(System(f"{name} {kind}", peers, "run_llama", package, gguf, (*flags, package)))
    return [*found, System("transformers bf16", own, "run_transformers", "transformers", files.checkpoint)]


def call(python: Path | str, runner: str, *arguments: object) -> dict[str, Any]:
    """The JSON that a runner prints last."""
    command = [str(python), "-m", f"bench.peers.{runner}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds() -> float:
    """The time that all processes but those started here have taken."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def undisturbed(system: System, threads: int, until: float) -> dict[str, Any]:
    """A run while the machine was quiet, waiting and repeating; after `until` the last one as it is."""
    while True:
        wait_for_quiet(until)
        found = system.run(threads)
        if found["others"] <= QUIET or time.monotonic() > until:
            return found


def wait_for_quiet(until: float) -> None:
    others = math.inf
    while others > QUIET and time.monotonic() < until:
        busy = cpu_seconds()
        time.sleep(1)
        others = cpu_seconds() - busy


def compare(found: list[System], rounds: int, threads: int, patience: float) -> dict[str, Any]:
    """Every system once a round, after a plain read, waiting at most `patience` seconds in all for a quiet machine."""
    until = time.monotonic() + patience
    reads: list[float] = []
    runs: dict[str, list[dict[str, Any]]] = {system.name: [] for system in found}
    for number in range(rounds):
        wait_for_quiet(until)
        reads.append(call(sys.executable, "run_read", "--threads", threads)["bytes_per_s"])
        for system in found:
            print(f"round {number + 1} of {rounds}: {system.name}", file=sys.stderr)
            runs[system.name].append(undisturbed(system, threads, until))
    read = statistics.median(reads)
    reference = runs[found[-1].name][0]["logits"]
    rows = [summary(name, many, read, reference) for name, many in runs.items()]
    return {"threads": threads, "rounds": rounds, "read_bytes_per_s": spread(reads), "systems": rows}


def summary(name: str, runs: list[dict[str, Any]], read: float, reference: list[float]) -> dict[str, Any]:
    decode, size = spread([run["decode"] for run in runs]), runs[0]["bytes_per_token"]
    return {
        "system": name,
        "decode_tok_s": decode,
        "prefill_tok_s": spread([run["prefill"] for run in runs]),
        "bytes_per_token": size,
        "bytes_per_s": size * decode["median"],
        "of_read": size * decode["median"] / read,
        "logits_cosine": cosine(runs[0]["logits"], reference),
        "others_cores": max(run["others"] for run in runs),
    }


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


COLUMNS = "{:31} {:>19} {:>8} {:>5} {:>7} {:>19} {:>7} {:>6}"
HEAD = COLUMNS.format("", "decode, tok/s", "MB/token", "GB/s", "of read", "prefill 512, tok/s", "cosine", "others")


def table(report: dict[str, Any]) -> str:
    """What is printed: medians, and ranges in brackets."""
    read, rows = report["read_bytes_per_s"], report["systems"]
    return "\n".join(
        [
            f"{report['threads']} threads, {report['rounds']} rounds, median (range)",
            f"raw read {_range(read, 1e9)} GB/s",
            f"cosine: of the prompt's last logits with those of {rows[-1]['system']}",
            "others: cores that other processes took, at most",
            HEAD,
            *map(_line, rows),
        ]
    )


def _line(row: dict[str, Any]) -> str:
    return COLUMNS.format(
        row["system"],
        _range(row["decode_tok_s"]),
        f"{row['bytes_per_token'] / 1e6:.1f}",
        f"{row['bytes_per_s'] / 1e9:.1f}",
        f"{row['of_read']:.0%}",
        _range(row["prefill_tok_s"]),
        f"{row['logits_cosine']:.4f}",
        f"{row['others_cores']:.1f}",
    )


def _range(figures: dict[str, float], unit: float = 1) -> str:
    return "{:.1f} ({:.1f}-{:.1f})".format(*(figures[key] / unit for key in ("median", "min", "max")))
