"""What error feedback takes: fused multiply-adds a second of one core, and minutes of one core for whole models.

N K (K - 1) / 2 multiply-adds for a matrix [N, K]. Time of the process counts, and the best run, so that others' load
does not.
"""

import argparse
import json
import time

import torch

from krasis.native import cpu, feedback

MODELS = {"Qwen3-Coder-Next": (1024, 2048, 48 * 512), "Qwen3-235B-A22B": (3072, 4096, 94 * 128)}
"""Rows and columns of w13, and how many a model has."""

GROUP_SIZE = 128


def seconds(n: int, k: int, isa: str, runs: int) -> float:
    """Of one matrix. What the numbers are makes no difference."""
    weight, shares = torch.randn(n, k), 0.01 * torch.randn(k, k)
    scales, importance = torch.full((n, k // GROUP_SIZE), 0.4, dtype=torch.bfloat16), torch.ones(k)
    found = []
    for _ in range(runs):
        begin = time.process_time()
        feedback.codes(weight, shares, scales, importance, isa)
        found.append(time.process_time() - begin)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=cpu.ISAS, default=cpu.best_isa())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for model, (n, k, count) in MODELS.items():
        taken = seconds(n, k, arguments.isa, arguments.runs)
        rate = n * k * (k - 1) / 2 / taken / 1e9
        rows.append({"model": model, "seconds": taken, "gfma_per_s": rate, "core_minutes": taken * count / 60})
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        speed = f"{row['seconds']:.3f} s an expert, {row['gfma_per_s']:.1f} billion multiply-adds a second"
        print(f"{row['model']:18} {speed}, {row['core_minutes']:.0f} minutes of one core")


if __name__ == "__main__":
    main()
