"""krasis inspect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli.console import emit_json, human
from krasis.cli.tables import print_facts, print_matrices, print_sizes, print_source

if TYPE_CHECKING:
    from krasis.pack.reader import Pack

PackArgument = Annotated[Path, typer.Argument(help="Pack folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def inspect(pack: PackArgument, json: JsonOption = False) -> None:
    """Show what is in a pack: sizes, layouts, padding, quantization error, and what it was made from."""
    from krasis.pack.reader import Pack

    summary = _summary(Pack(pack))
    if json:
        emit_json(summary)
        return
    parts = {key: summary.pop(key) for key in ("matrices", "sizes", "source", "settings")}
    total, padding = summary.pop("total_bytes"), summary.pop("padding_bytes")
    sizes = {"total": human(total), "padding": f"{human(padding)}, {padding / total:.1%}"}
    facts = (summary | parts["settings"] | sizes).items()
    print_facts({name.replace("_", " "): value for name, value in facts if value is not None})
    print_sizes(parts["sizes"])
    print_matrices(parts["matrices"])
    print_source(parts["source"])


def _summary(pack: "Pack") -> dict[str, Any]:
    import msgspec

    from krasis import models
    from krasis.heat import profile
    from krasis.models.conform import read_spec
    from krasis.pack.summary import matrices, padding_bytes, sizes

    spec, manifest = read_spec(pack), pack.manifest
    moe_layers = models.of(spec).moe_layers(spec)
    segments = [segment for _, segment in manifest.segments()]
    settings = msgspec.to_builtins(manifest.settings)
    return {
        "model_type": manifest.model["model_type"],
        "format_version": manifest.version,
        "tool": manifest.tool,
        "total_bytes": manifest.weight_bytes,
        "padding_bytes": padding_bytes(segments),
        "expert_bits": manifest.settings.expert_bits,
        "dense_bits": manifest.settings.dense_bits,
        "group_size": manifest.settings.group_size,
        "layouts": list(manifest.settings.layouts),
        "settings": settings,
        "layers": spec.num_layers,
        "experts": max(moe_layers.values(), default=0),
        "heat": profile.names_in(pack.path),
        "root_hash": manifest.root,
        "sizes": sizes(segments),
        "matrices": matrices(segments, manifest.errors, manifest.weighted_errors),
        "source": msgspec.to_builtins(manifest.source),
    }
