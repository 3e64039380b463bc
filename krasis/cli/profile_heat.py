"""krasis profile-heat: which experts a workload uses."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli import heat_worth
from krasis.cli.console import Reporter, emit_json, note
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.options import (
    DeviceOption,
    HeatOption,
    LayoutOption,
    MoreTextArgument,
    ThreadsOption,
    TokensOption,
    VramOption,
    WindowOption,
    check_tokens,
    check_window,
    running,
    show_notes,
)
from krasis.errors import InputError, UsageError

if TYPE_CHECKING:
    from krasis.heat.partial import Partial, TextHeat
    from krasis.heat.profile import HeatProfile
    from krasis.pack.manifest import Origin
    from krasis.pack.reader import Pack
    from krasis.runtime.corpus import TextFile
    from krasis.runtime.engine import Engine

SHARES = (0.1, 0.2, 0.3)
OUTPUTS = {
    "imatrix": "the importance matrix, for krasis convert --imatrix",
    "plot": "heat, coverage and how texts differ",
    "report": "the same as a page for any browser",
}


def profile_heat(
    pack: PackArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE...", help="Text files, UTF-8; *.jsonl holds a conversation a line."),
    ] = None,
    more: MoreTextArgument = None,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", metavar="FILE...", help="Add up these profiles; runs nothing.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep the profile in the pack under this name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file instead.")] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the importance matrix that convert takes.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score the profile on held-out text, beside an oracle and caches.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw heat and hits: a .png or .svg. Evaluates.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write both as one interactive HTML page. Evaluates.")
    ] = None,
    window: WindowOption = 512,
    decode_tokens: Annotated[
        int, typer.Option(help="Run so many tokens at the end of each window one by one, and count them as decode.")
    ] = 32,
    sequences: Annotated[
        int, typer.Option(help="Decode so many windows side by side: faster, and the same profile.")
    ] = 16,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    vram: VramOption = None,
    heat: HeatOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Count which experts a workload uses; a quarter of the text is held out to score the profile on.

    Stopped, the same command goes on where it was.
    """
    from krasis.heat import pictures, profile
    from krasis.heat.partial import Job, Partial
    from krasis.pack.reader import Pack
    from krasis.runtime.backend import MOST_TOGETHER
    from krasis.runtime.corpus import TextFile
    from krasis.runtime.heat import TOOL, held_out_coverage, profile_of, save_imatrix
    from krasis.runtime.opening import open_engine
    from krasis.runtime.tokenizer import Tokenizer

    if bool(text) == bool(merge):
        raise UsageError("profile-heat measures or merges", expected="one of --text and --merge")
    if name and out:
        raise UsageError("--name and --out name two places", expected="one of them")
    destination = out or profile.path_in(pack, name or "default")
    opened = Pack(pack)
    evaluate = evaluate or bool(plot or report)
    if merge:
        if imatrix or evaluate:
            option = "--imatrix" if imatrix else "--evaluate, --plot or --report"
            raise UsageError(f"{option} needs --text", expected="profiles alone to merge")
        _merge(opened, [*merge, *(more or [])], destination, json)
        return
    _check_cuts(window, decode_tokens, tokens)
    if not 1 <= sequences <= MOST_TOGETHER:
        raise UsageError(f"--sequences is {sequences}", expected=f"1 to {MOST_TOGETHER}")
    if plot:
        pictures.check(plot)
    tokenizer = Tokenizer(opened)
    texts = [TextFile(path, tokenizer, window, tokens) for path in [*(text or []), *(more or [])]]
    corpus, total = _scan(texts, window, every=evaluate)
    where, sums = running(device, threads, layout, "mapped", vram, None, heat), imatrix is not None
    engine = open_engine(opened, where, context=window, sequences=sequences, trace=True, moments=sums)
    show_notes(engine.notes)
    assert engine.tracer is not None
    if not engine.tracer.experts:
        raise InputError("the model has no routed experts", where=pack)
    job = Job(
        tool=TOOL,
        pack_root=opened.manifest.root,
        corpus=corpus,
        window=window,
        decode_tokens=decode_tokens,
        limit=tokens,
        device=engine.backend.name,
        layout=layout,
        traces=evaluate,
        imatrix=sums,
        sequences=engine.sequences if sums else None,
    )
    memory = engine.moments.memory() if engine.moments else ()
    with Partial(destination, job, engine.tracer.experts, memory) as partial:
        measured = _measure(engine, texts, partial, total)
        found = profile_of(engine, opened, corpus, measured)
        profile.save(found, destination)
        if imatrix:
            save_imatrix(engine, opened, corpus, found.tokens.prefill + found.tokens.decode, imatrix)
        scored = heat_worth.evaluate(opened, found, measured, plot, report) if evaluate else None
        partial.remove()
    coverage = {f"{share:.0%}".rstrip("%"): held_out_coverage(measured, share) for share in SHARES}
    outputs = {"imatrix": imatrix, "plot": plot, "report": report}
    _show(found, destination, coverage, outputs, scored, json)


def _check_cuts(window: int, decode_tokens: int, tokens: int | None) -> None:
    check_window(window)
    if not 0 <= decode_tokens < window:
        raise UsageError(f"--decode-tokens is {decode_tokens}", expected="0 or more, fewer than --window")
    check_tokens(tokens)


def _scan(texts: "list[TextFile]", window: int, *, every: bool) -> "tuple[tuple[Origin, ...], int]":
    """The origins of all texts and their tokens, before anything is run: faults show at once.

    `every` text must be long enough to be scored on, or just one.
    """
    from krasis.runtime.heat import check_enough

    origins = tuple(text.origin() for text in texts)
    windows, tokens = [0] * len(texts), 0
    with Reporter() as reporter:
        reporter.start("reading", sum(origin.bytes for origin in origins))
        for i, text in enumerate(texts):
            for ids in text:
                windows[i], tokens = windows[i] + 1, tokens + len(ids)
            reporter.advance(origins[i].bytes)
    if every:
        for origin, found in zip(origins, windows, strict=True):
            check_enough([found], window, origin.name)
    check_enough(windows, window)
    return origins, tokens


def _measure(engine: "Engine", texts: "list[TextFile]", partial: "Partial", total: int) -> "list[TextHeat]":
    """Measure, showing progress, and say where a run that is stopped goes on."""
    from krasis.runtime.heat import measure

    if partial.dropped:
        note(f"{partial.path} starts over: {partial.dropped}")
    with Reporter("tokens") as reporter:
        reporter.start("profiling", total)
        try:
            return measure(engine, texts, partial, reporter.advance)
        except KeyboardInterrupt:
            ago = f", saved {partial.age:.0f} s ago" if partial.job.imatrix else ""
            note(f"stopped; the same command goes on from {partial.path}{ago}")
            raise


def _merge(pack: "Pack", paths: list[Path], destination: Path, json: bool) -> None:
    from krasis.heat import profile
    from krasis.runtime.heat import TOOL

    found = profile.merged([profile.read(path, pack.manifest) for path in paths], TOOL)
    hashes = [text.sha256 for text in found.corpus]
    for text in {text.sha256: text for text in found.corpus if hashes.count(text.sha256) > 1}.values():
        note(f"{text.name} counts {hashes.count(text.sha256)} times")
    profile.save(found, destination)
    _show(found, destination, None, {}, None, json)


def _show(
    found: "HeatProfile",
    destination: Path,
    coverage: dict[str, float] | None,
    outputs: dict[str, Path | None],
    scored: dict[str, Any] | None,
    json: bool,
) -> None:
    counted = found.tokens.prefill + found.tokens.decode
    held_out = sum(text.held_out for text in found.corpus)
    if json:
        written = {kind: (path := outputs.get(kind)) and str(path) for kind in ("imatrix", "plot", "report")}
        emit_json(
            {
                "tokens": counted,
                "decode_tokens": found.tokens.decode,
                "held_out_tokens": held_out,
                "layers": len(found.layers),
                "coverage": coverage,
                "profile": str(destination),
                **written,
                "evaluation": scored,
            }
        )
        return
    print(f"{destination}: {counted} tokens, {found.tokens.decode} of them decoded, {len(found.layers)} layers")
    for kind, path in outputs.items():
        if path:
            print(f"{path}: {OUTPUTS[kind]}")
    for share, mass in (coverage or {}).items():
        print(f"  hottest {share}% of experts hold {mass:.1%} of the routing of {held_out} held-out tokens")
    if scored:
        heat_worth.show(scored)
