"""krasis inspect and krasis verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from krasis.cli.console import Reporter, emit_json, human
from krasis.errors import InputError

PackArgument = Annotated[Path, typer.Argument(help="Pack folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def inspect(pack: PackArgument, json: JsonOption = False) -> None:
    """Show what is in a pack."""
    from krasis.pack.reader import Pack

    summary = _summary(Pack(pack))
    if json:
        emit_json(summary)
        return
    matrices = summary.pop("matrices")
    for key, value in summary.items():
        print(f"{key:<15} {', '.join(value) if isinstance(value, list) else value}")
    print(f"\n{'matrix':<20} {'codec':<5} {'group':>5} {'shape':>16} {'padded':>16} {'error':>8}")
    for m in matrices:
        shape, padded = ("x".join(map(str, m[key])) for key in ("shape", "padded_shape"))
        print(
            f"{m['kind']:<20} {m['codec']:<5} {m['group_size']:>5} {shape:>16} {padded:>16} {m['rel_rms_error']:>8.3%}"
        )


def _summary(pack: Any) -> dict[str, Any]:
    from krasis import models
    from krasis.heat import profile
    from krasis.pack.summary import matrices
    from krasis.runtime.engine import read_spec

    spec, manifest = read_spec(pack), pack.manifest
    moe_layers = models.get(manifest.model["model_type"]).moe_layers(spec)
    return {
        "model_type": manifest.model["model_type"],
        "format_version": manifest.version,
        "tool": manifest.tool,
        "total_bytes": manifest.weight_bytes,
        "expert_bits": manifest.settings.expert_bits,
        "dense_bits": manifest.settings.dense_bits,
        "group_size": manifest.settings.group_size,
        "layouts": list(manifest.settings.layouts),
        "layers": spec.num_layers,
        "experts": max(moe_layers.values(), default=0),
        "heat": profile.names_in(pack.path),
        "root_hash": manifest.root,
        "matrices": matrices((segment for _, segment in manifest.segments()), manifest.errors),
    }


def verify(pack: PackArgument, json: JsonOption = False) -> None:
    """Check every bound and every hash of a pack."""
    from krasis.pack.reader import Pack

    opened = Pack(pack)
    checked, broken = 0, []
    with Reporter() as reporter:
        reporter.start("verifying", opened.manifest.total_bytes)
        for name, size, matches in opened.verify():
            checked += size
            reporter.advance(size)
            if not matches:
                broken.append(name)
    if json:
        emit_json({"ok": not broken, "bytes": checked, "broken": broken, "root_hash": opened.manifest.root})
    elif not broken:
        print(f"{pack}: {human(checked)} verified, root {opened.manifest.root[:12]}")
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        expected, hint = "the bytes that were written", "convert the model again"
        raise InputError(f"hash mismatch in {broken[0]}{more}", where=pack, expected=expected, hint=hint)
