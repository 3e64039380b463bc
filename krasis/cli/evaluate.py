"""krasis eval and krasis profile-heat: run text through a pack and measure."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from krasis import __version__
from krasis.cli.console import Reporter, emit_json
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.options import (
    DeviceOption,
    KvOption,
    LayoutOption,
    LoadOption,
    MoreTextArgument,
    TextOption,
    ThreadsOption,
    TokensOption,
    WindowOption,
    encode_texts,
    show_notes,
)
from krasis.errors import InputError, UsageError

SHARES = (0.1, 0.2, 0.3)


def evaluate(
    pack: PackArgument,
    text: TextOption,
    more: MoreTextArgument = None,
    window: WindowOption = 512,
    tokens: TokensOption = None,
    path: Annotated[Literal["prefill", "decode"], typer.Option(help="Whole windows, or token by token.")] = "prefill",
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    load: LoadOption = "mapped",
    kv: KvOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the loss on text, in nats per token."""
    from krasis.pack.reader import Pack
    from krasis.runtime.devices import open_backend
    from krasis.runtime.engine import Engine
    from krasis.runtime.eval import Loss, text_loss
    from krasis.runtime.tokenizer import Tokenizer

    if window < 2:
        raise UsageError(f"--window is {window}", expected="2 or more")
    opened = Pack(pack)
    texts = encode_texts([*text, *(more or [])], Tokenizer(opened), tokens)
    backend, notes = open_backend(device, threads)
    with Reporter() as reporter:
        engine = Engine(opened, backend, context=window, kv=kv, layout=layout, load=load, progress=reporter)
    show_notes(notes + engine.notes)
    losses = {}
    with Reporter("tokens") as reporter:
        reporter.start(f"scoring, {path} on {backend.name}", sum(map(len, texts.values())))
        for name, ids in texts.items():
            losses[name] = text_loss(engine, ids, window, path, reporter.advance)
            if not losses[name].tokens:
                raise InputError("the text is too short to score", where=name, expected="2 tokens or more")
    total = sum(losses.values(), Loss(0.0, 0))
    if json:
        files = {name: {"nll": loss.nll, "tokens": loss.tokens} for name, loss in losses.items()}
        emit_json({"nll": total.nll, "tokens": total.tokens, "files": files, "path": path, "device": backend.name})
        return
    for name, loss in {**losses, "all": total}.items():
        print(f"{name:<24} {loss.nll:.4f} nats/token over {loss.tokens} tokens")


def profile_heat(
    pack: PackArgument,
    text: TextOption,
    more: MoreTextArgument = None,
    name: Annotated[str | None, typer.Option(help="Keep the profile in the pack under this name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file instead.")] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the importance matrix that convert takes.")
    ] = None,
    window: WindowOption = 512,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Count which experts a workload uses; a quarter of the text is held out to score the profile on."""
    from krasis.heat import profile
    from krasis.pack.manifest import FileHash
    from krasis.pack.reader import Pack
    from krasis.runtime.devices import open_backend
    from krasis.runtime.engine import Engine
    from krasis.runtime.heat import measure, save_imatrix
    from krasis.runtime.tokenizer import Tokenizer

    if window < 2:
        raise UsageError(f"--window is {window}", expected="2 or more")
    if name and out:
        raise UsageError("--name and --out name two places", expected="one of them")
    destination = out or profile.path_in(pack, name or "default")
    opened = Pack(pack)
    paths = [*text, *(more or [])]
    texts = encode_texts(paths, Tokenizer(opened), tokens)
    backend, notes = open_backend(device, threads)
    engine = Engine(opened, backend, context=window, layout=layout, trace=True, moments=imatrix is not None)
    show_notes(notes + engine.notes)
    with Reporter("tokens") as reporter:
        reporter.start("profiling", sum(map(len, texts.values())))
        measured = measure(engine, list(texts.values()), window, reporter.advance)
    contents = {path: path.read_bytes() for path in paths}
    corpus = tuple(FileHash(p.name, len(c), hashlib.sha256(c).hexdigest()) for p, c in contents.items())
    found = profile.HeatProfile(
        format="krasis-heat",
        version=profile.VERSION,
        tool=f"krasis {__version__}",
        pack_root=opened.manifest.root,
        corpus=corpus,
        tokens=measured.tokens,
        layers=tuple(
            profile.LayerHeat(layer, tuple(map(int, counts))) for layer, counts in sorted(measured.profile.items())
        ),
    )
    profile.save(found, destination)
    if imatrix:
        save_imatrix(engine, opened, corpus, measured.tokens, imatrix)
    coverage = {f"{share:.0%}".rstrip("%"): measured.coverage(share) for share in SHARES}
    if json:
        emit_json(
            {
                "tokens": measured.tokens,
                "held_out_tokens": measured.held_out_tokens,
                "layers": len(found.layers),
                "coverage": coverage,
                "profile": str(destination),
                "imatrix": imatrix and str(imatrix),
            }
        )
        return
    print(f"{destination}: {measured.tokens} tokens, {len(found.layers)} layers")
    if imatrix:
        print(f"{imatrix}: the importance matrix, for krasis convert --imatrix")
    for share, mass in coverage.items():
        held_out = f"the routing of {measured.held_out_tokens} held-out tokens"
        print(f"  hottest {share}% of experts hold {mass:.1%} of {held_out}")
