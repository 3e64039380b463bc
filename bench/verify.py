"""How fast krasis verify reads, next to plain reading: python bench/verify.py PACK [--source CHECKPOINT]

Rounds of reading and verifying, in turn, each from the disk and then from the page cache. With a checkpoint, one run of
verify --against too, and its peak anonymous memory.
"""

import argparse
import json
from pathlib import Path

import measure

from krasis.pack.reader import Pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    paths = [options.pack / file.name for file in Pack(options.pack).manifest.files]
    rates: dict[str, list[float]] = {key: [] for key in ("read cold", "verify cold", "read warm", "verify warm")}
    for _ in range(options.rounds):
        for state in ("cold", "warm"):
            for what in ("read", "verify"):
                if state == "cold":
                    measure.drop(paths)
                rates[f"{what} {state}"].append(rate(what, options.pack, paths, options.jobs))
    result = {"machine": measure.machine(options.pack), "jobs": options.jobs}
    result |= {f"{key}, bytes/s": measure.spread(found) for key, found in rates.items()}
    for state in ("cold", "warm"):
        result[f"{state} ratio"] = max(rates[f"verify {state}"]) / max(rates[f"read {state}"])
    if options.source:
        run = measure.krasis("verify", options.pack, "--against", options.source, "--jobs", options.jobs)
        against = {"seconds": run.wall, "peak_bytes": run.peak, "tensors": run.result["against"]["tensors"]}
        result["against"] = against
    print(json.dumps(result, indent=2))


def rate(what: str, pack: Path, paths: list[Path], jobs: int) -> float:
    if what == "read":
        return measure.read_rate(paths, jobs)
    return float(measure.krasis("verify", pack, "--jobs", jobs).result["bytes_per_s"])


if __name__ == "__main__":
    main()
