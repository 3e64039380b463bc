"""krasis convert."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli.console import Reporter, duration, emit_json, human, note
from krasis.cli.options import JobsOption, checked_jobs
from krasis.cli.tables import print_facts, print_matrices, print_sizes
from krasis.errors import UsageError

if TYPE_CHECKING:
    from krasis.pack.manifest import Settings

EXPERT_CODECS = ("auto", "int4", "int8", "mxfp4", "bf16")


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint: a local folder, or a hub id.")],
    pack: Annotated[Path, typer.Argument(help="Folder to make.")],
    expert_bits: Annotated[
        int | None, typer.Option(help="Bits of routed experts: 4 when not given, 8, or 16 for testing.")
    ] = None,
    expert_codec: Annotated[
        str, typer.Option(help="int4, int8, mxfp4 or bf16; auto goes by bits and keeps MXFP4 where it fits.")
    ] = "auto",
    group_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = 128,
    preset: Annotated[
        str | None,
        typer.Option(help="Of INT4 experts: fast, balanced or best. Not given: balanced with --imatrix, else fast."),
    ] = None,
    w2_codec: Annotated[
        str | None, typer.Option(help="Of INT4 experts: int4 or int8 for w2, instead of what the preset says.")
    ] = None,
    w2_group_size: Annotated[
        int | None, typer.Option(help="Of INT4 experts: group size of w2, instead of what the preset says.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix that profile-heat wrote.")
    ] = None,
    dense_bits: Annotated[int, typer.Option(help="Bits of attention, dense MLP and lm_head: 8 or 16.")] = 8,
    layouts: Annotated[str, typer.Option(help="Byte orders to write: marlin, cpu, or both.")] = "marlin",
    jobs: JobsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing pack.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    discard_source: Annotated[
        bool, typer.Option("--discard-source", help="Drop each shard of a hub model from the cache after its last use.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, padding, time and memory; read no weights, write nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantize a checkpoint into a pack."""
    # Imported here so that --help answers at once.
    import torch

    from krasis.convert import presets
    from krasis.convert.estimate import estimate
    from krasis.convert.pipeline import Conversion
    from krasis.convert.store import open_store
    from krasis.native.cores import physical_cores
    from krasis.pack.writer import begun

    codec, bits = read_experts(expert_codec, expert_bits)
    name = preset or presets.default(imatrix is not None)
    w2 = _w2(name, w2_codec, w2_group_size)
    settings = read_settings(bits, dense_bits, group_size, layouts, preset=name, **w2)
    jobs = checked_jobs(jobs) or physical_cores()
    # Threads of ours share out the work; torch's would stand in each other's way.
    torch.set_num_threads(1)
    store = open_store(source, revision, note, discard=discard_source, begun=begun(pack))
    conversion = Conversion(store, settings, codec, imatrix)
    presets.check(conversion.settings, conversion.plans)
    if dry_run:
        _print_plan(conversion.summary() | {"estimate": estimate(conversion, jobs)}, json)
        return
    begin = time.monotonic()
    with Reporter() as reporter:
        manifest = conversion.run(pack, reporter, force=force, jobs=jobs)
    seconds = time.monotonic() - begin
    if json:
        emit_json({"pack": str(pack), "root_hash": manifest.root, "bytes": manifest.weight_bytes, "seconds": seconds})
    else:
        print(f"{pack}: {human(manifest.weight_bytes)} in {seconds:.1f} s, root {manifest.root[:12]}")


def read_experts(codec: str, bits: int | None) -> tuple[str | None, int]:
    """(the codec that was named, None for auto; bits of experts). A named codec refuses bits that are not its own."""
    from krasis import quant

    one_of("--expert-codec", codec, EXPERT_CODECS, ", ".join(EXPERT_CODECS))
    if codec == "auto":
        return None, 4 if bits is None else bits
    own = quant.get(codec).BITS
    if bits not in (None, own):
        raise UsageError(f"--expert-bits is {bits} with --expert-codec {codec}", expected=f"{own}, or not given")
    return codec, own


def _w2(name: str, codec: str | None, group_size: int | None) -> dict[str, Any]:
    """The settings of w2: what was named, else what the preset says."""
    from krasis.convert.presets import PRESETS

    one_of("--preset", name, tuple(PRESETS), ", ".join(PRESETS))
    one_of("--w2-codec", codec, (None, "int4", "int8"), "int4 or int8")
    one_of("--w2-group-size", group_size, (None, 32, 64, 128), "32, 64 or 128")
    preset = PRESETS[name]  # type: ignore[index]
    return {"w2_codec": codec or preset.w2_codec, "w2_group_size": group_size or preset.w2_group_size}


def read_settings(expert_bits: int, dense_bits: int, group_size: int, layouts: str, **others: Any) -> "Settings":
    """Settings of a pack by its options, and others as they are."""
    import msgspec

    from krasis import layout as known
    from krasis.pack.manifest import Settings

    one_of("--expert-bits", expert_bits, (4, 8, 16), "4, 8 or 16")
    one_of("--dense-bits", dense_bits, (8, 16), "8 or 16")
    one_of("--group-size", group_size, (32, 64, 128), "32, 64 or 128")
    names = tuple(dict.fromkeys(name.strip() for name in layouts.split(",")))
    for name in names:
        one_of("--layouts", name, known.names(), ", ".join(known.names()))
    found = {"expert_bits": expert_bits, "dense_bits": dense_bits, "group_size": group_size, "layouts": names}
    return msgspec.convert(found | others, Settings)


def one_of(flag: str, value: object, allowed: Any, expected: str) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise UsageError(f"{flag} is {value}", expected=expected)


def _print_plan(summary: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(summary)
        return
    total, padding, guess = summary["bytes"], summary["padding_bytes"], summary["estimate"]
    speeds = ", ".join(f"{r['codec']} g{r['group_size']} {human(r['bytes_per_s'])}/s" for r in guess["rates"])
    print_facts(
        {
            "model type": summary["model_type"],
            "source": human(summary["source_bytes"]),
            "pack": f"{human(total)} in {summary['files']} files",
            "padding": f"{human(padding)}, {padding / total:.1%}",
            "time": f"about {duration(guess['seconds'])} with {guess['jobs']} jobs, if the disk keeps up",
            "memory": f"about {human(guess['memory_bytes'])} beside the page cache",
            "estimated from": f"made-up weights: {speeds}",
        }
    )
    print_sizes(summary["sizes"])
    print_matrices(summary["matrices"])
