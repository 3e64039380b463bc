"""krasis synth."""

import hashlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli.console import Reporter, emit_json, human
from krasis.cli.convert import one_of, read_experts, read_settings
from krasis.cli.options import JobsOption, checked_jobs
from krasis.errors import InputError, UsageError

if TYPE_CHECKING:
    from krasis.pack.manifest import FileHash


def synth(
    config: Annotated[Path, typer.Argument(help="config.json of a model, or the folder it lies in.")],
    pack: Annotated[Path, typer.Argument(help="Folder to make.")],
    expert_bits: Annotated[int | None, typer.Option(help="Bits of routed experts: 4 when not given, 8 or 16.")] = None,
    expert_codec: Annotated[
        str, typer.Option(help="int4, int8, mxfp4 or bf16; auto goes by bits, and by MXFP4 in the configuration.")
    ] = "auto",
    group_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = 128,
    dense_bits: Annotated[int, typer.Option(help="Bits of attention, dense MLP and lm_head: 8 or 16.")] = 8,
    layouts: Annotated[str, typer.Option(help="Byte orders to write: marlin, cpu, or both.")] = "marlin",
    layers: Annotated[int | None, typer.Option(help="Make the first N layers alone.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Make a vocabulary of N tokens.")] = None,
    skew: Annotated[
        float,
        typer.Option(help="How unevenly experts are used: the r-th is chosen r^-SKEW times as often as the first."),
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Another seed makes other weights.")] = 0,
    jobs: JobsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing pack.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a pack of real shape with made-up weights, to measure where no checkpoint fits."""
    import torch

    from krasis.native.cores import physical_cores
    from krasis.synth.pack import Recipe, Synthesis, shortened

    codec, bits = read_experts(expert_codec, expert_bits)
    settings = read_settings(bits, dense_bits, group_size, layouts)
    jobs = checked_jobs(jobs) or physical_cores()
    one_of("--seed", seed, range(1 << 63), "0 or more, below 2^63")
    check_skew(skew)
    tree, source = read_config(config)
    synthesis = Synthesis(shortened(tree, layers, vocab), Recipe(settings, codec, skew, seed))
    # Threads of ours share out the work; torch's would stand in each other's way.
    torch.set_num_threads(1)
    begin = time.monotonic()
    with Reporter() as reporter:
        manifest = synthesis.run(pack, source, reporter, force=force, jobs=jobs)
    seconds = time.monotonic() - begin
    if json:
        emit_json({"pack": str(pack), "root_hash": manifest.root, "bytes": manifest.weight_bytes, "seconds": seconds})
    else:
        print(f"{pack}: {human(manifest.weight_bytes)} of made-up weights in {seconds:.1f} s")


def check_skew(skew: float) -> None:
    """Raises UsageError for a skew that no law has."""
    if not 0 <= skew <= 4 or math.isnan(skew):
        raise UsageError(f"--skew is {skew}", expected="0, which is even, to 4")


def read_config(path: Path) -> "tuple[dict[str, Any], FileHash]":
    """A config.json, and what it was."""
    import msgspec

    from krasis.pack.manifest import FileHash

    path = path / "config.json" if path.is_dir() else path
    try:
        raw = path.read_bytes()
        tree = msgspec.json.decode(raw, type=dict[str, Any])
    except OSError as error:
        raise InputError(f"can't read the configuration: {error.strerror}", where=path) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"not a configuration: {error}", where=path, expected="a hub config.json") from error
    return tree, FileHash("config.json", len(raw), hashlib.sha256(raw).hexdigest())
