"""How fast krasis converts, next to what the machine can do: python bench/convert.py [CHECKPOINT]

Converts a checkpoint with several settings: by default a made-up one of Qwen3-Coder-Next's shape, 4 layers with all 512
experts, 13 GB. Rates are of input counted in bfloat16, whatever its encoding. Beside them: a plain read of the same
files, cold and warm, the disk's writing speed, peak anonymous memory against its bound, and the minutes that each of
the target models would take at the rate of its slice.

--quick takes a slice of every target model in memory, and times krasis synth and krasis verify on 40 GB there too.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import synthetic_checkpoint as synthetic

from krasis.native.cores import physical_cores
from krasis.pack.manifest import Settings
from krasis.synth.pack import Recipe, Synthesis, shortened

CONFIGS = Path(__file__).parents[1] / "tests/models/configs"
SETTINGS = {
    "int4 g128, both layouts": ("--layouts", "marlin,cpu"),
    "int4 g128, one layout": ("--layouts", "cpu"),
    "int8 g128, both layouts": ("--layouts", "marlin,cpu", "--expert-bits", 8),
}
WHOLE = ("qwen3-coder-next", 4, None)
SLICES = [
    ("qwen3-coder-next", 4, 128),
    ("qwen3-235b-a22b", 1, None),
    ("gpt-oss-120b", 2, 64),
    ("deepseek-v2-lite", 4, None),
]
"""(configuration, layers, experts)."""
VOCAB = 8192
"""A slice's embeddings are cut too, to weigh about what they do in the whole."""

BASE_BYTES = 3 << 29
SYNTH_BYTES = 40 * 10**9
WRITE_BYTES = 2 << 30


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert. `bytes` are those of its weights in bfloat16, `expert` those of an expert's."""

    name: str
    folder: Path
    bytes: int
    expert: int

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def bf16_bytes(config: dict) -> int:
    return sum(tensor.bytes for tensor in synthetic.tensors(synthetic.encoded(config, "bf16")))


def expert_weights(config: dict) -> int:
    """Weights of the largest expert: gate, up and down."""
    size = config.get("moe_intermediate_size") or config["intermediate_size"]
    return 3 * config["hidden_size"] * size


def working_set(weights: int) -> int:
    """Bytes that quantizing an expert may take: as read, in float32, and in codes."""
    return weights * (2 + 4 + 1)


def made(scratch: Path, name: str, layers: int, experts: int | None, jobs: int) -> Source:
    """A slice of a target model, written to `scratch`."""
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    changes = {"num_hidden_layers": layers, "vocab_size": VOCAB} | synthetic.cut_experts(config, experts)
    config = synthetic.cut(config, **changes)
    folder = scratch / name
    synthetic.write(config, folder, jobs=jobs)
    return Source(name, folder, bf16_bytes(config), expert_weights(config))


def given(folder: Path) -> Source:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Source(folder.name, folder, bf16_bytes(config), expert_weights(config))


def convert(source: Source, scratch: Path, flags: tuple, jobs: int, runs: int) -> dict[str, Any]:
    """Several conversions from a cold cache with one setting."""
    pack, found = scratch / "pack", []
    for _ in range(runs):
        measure.drop(source.files)
        found.append(measure.krasis("convert", source.folder, pack, *flags, "--jobs", jobs))
        shutil.rmtree(pack)
    return {
        "gb_per_s": measure.spread([source.bytes / run.result["seconds"] / 1e9 for run in found]),
        "wall_s": measure.spread([run.wall for run in found]),
        "pack_bytes": found[0].result["bytes"],
        "peak_bytes": max(run.peak for run in found),
        "bound_bytes": BASE_BYTES + jobs * working_set(source.expert),
    }


def plain(source: Source, jobs: int, runs: int) -> dict[str, Any]:
    """Reading the same files and doing nothing. Bytes are those of the files."""

    def cold() -> float:
        measure.drop(source.files)
        return measure.read_rate(source.files, jobs) / 1e9

    return {
        "cold_gb_per_s": measure.repeated(cold, runs),
        "warm_gb_per_s": measure.repeated(lambda: measure.read_rate(source.files, jobs) / 1e9, runs),
    }


def minutes(rates: dict[str, float]) -> dict[str, float]:
    """Target model -> minutes at the rate of its own slice, or of the one slice there is."""
    found = {}
    for name, *_ in SLICES:
        config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
        rate = rates.get(name) or next(iter(rates.values()))
        found[name] = bf16_bytes(config) / (rate * 1e9) / 60
    return found


def synth(scratch: Path, jobs: int) -> dict[str, Any]:
    """krasis synth and krasis verify on 40 GB of Qwen3-235B, or on as many layers as half of the free space takes."""
    path = CONFIGS / "qwen3-235b-a22b.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"))

    def size(layers: int) -> int:
        return Synthesis(shortened(config, layers, None), Recipe(settings)).bytes

    room = shutil.disk_usage(scratch).free // 2
    layers = next((n for n in range(1, config["num_hidden_layers"]) if size(n) >= min(SYNTH_BYTES, room)), 1)
    pack = scratch / "synth"
    written = measure.krasis("synth", path, pack, "--layers", layers, "--jobs", jobs)
    verified = measure.krasis("verify", pack)
    shutil.rmtree(pack)
    total = written.result["bytes"]
    return {
        "bytes": total,
        "synth_s": written.wall,
        "synth_gb_per_s": total / written.wall / 1e9,
        "verify_s": verified.wall,
        "verify_gb_per_s": total / verified.wall / 1e9,
    }


def report(found: dict[str, Any]) -> None:
    machine = found["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {found['jobs']} jobs; load {machine['load']:.1f} at the start")
    print(f"writing: {_range(found['write_gb_per_s'])} GB/s")
    for name, source in found["sources"].items():
        cold, warm = (_range(source["read"][key]) for key in ("cold_gb_per_s", "warm_gb_per_s"))
        print(f"\n{name}: {source['bytes'] / 1e9:.3g} GB of bfloat16, files read at {cold} GB/s cold, {warm} warm")
        for setting, row in source["settings"].items():
            memory = f"peak {row['peak_bytes'] / 2**30:.2f} GiB of {row['bound_bytes'] / 2**30:.2f}"
            rate = _range(row["gb_per_s"])
            print(f"  {setting:<25} {rate} GB/s, {row['pack_bytes'] / 1e9:.3g} GB written, {memory}")
    print("\nminutes at full size, int4 g128, both layouts:")
    for name, figure in found["minutes"].items():
        own = "" if name in found["sources"] else "  (at the rate of another's slice)"
        print(f"  {name:<20} {figure:6.1f}{own}")
    if made_up := found.get("synth"):
        rates = (
            f"{key} {made_up[f'{key}_s']:.1f} s, {made_up[f'{key}_gb_per_s']:.2f} GB/s" for key in ("synth", "verify")
        )
        print(f"\n{made_up['bytes'] / 1e9:.1f} GB made up: {'; '.join(rates)}")


def _range(figure: dict[str, float]) -> str:
    return f"{figure['median']:.3g} ({figure['min']:.3g} to {figure['max']:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder; a made-up one when not given")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where to write; a folder of it"
    )
    parser.add_argument("--dev-shm", action="store_true", help="put everything in memory")
    parser.add_argument("--quick", action="store_true", help="slices of the target models in memory, and synth")
    parser.add_argument("--jobs", type=int, default=physical_cores())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parent = Path("/dev/shm") if options.dev_shm or options.quick else options.scratch
    with tempfile.TemporaryDirectory(prefix="krasis-bench-", dir=parent) as scratch:
        found = measure_all(options, Path(scratch))
    if options.json:
        json.dump(found, sys.stdout)
        print()
    else:
        report(found)


def measure_all(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": measure.machine(scratch), "jobs": options.jobs, "sources": {}}
    found["write_gb_per_s"] = measure.repeated(lambda: measure.write_rate(scratch, WRITE_BYTES) / 1e9, options.runs)
    slices = SLICES if options.quick else [WHOLE]
    for i, wanted in enumerate(slices[:1] if options.checkpoint else slices):
        source = given(options.checkpoint) if options.checkpoint else made(scratch, *wanted, options.jobs)
        # One slice is enough to tell settings apart.
        settings = SETTINGS if i == 0 else dict(list(SETTINGS.items())[:1])
        found["sources"][source.name] = {
            "bytes": source.bytes,
            "read": plain(source, options.jobs, options.runs),
            "settings": {
                name: convert(source, scratch, flags, options.jobs, options.runs) for name, flags in settings.items()
            },
        }
        if not options.checkpoint:
            shutil.rmtree(source.folder)
    first = next(iter(SETTINGS))
    found["minutes"] = minutes(
        {name: row["settings"][first]["gb_per_s"]["median"] for name, row in found["sources"].items()}
    )
    if options.quick:
        found["synth"] = synth(scratch, options.jobs)
    return found


if __name__ == "__main__":
    main()
