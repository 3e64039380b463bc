"""krasis eval: the loss of a pack on text."""

from typing import Annotated, Literal

import typer

from krasis.cli.console import Reporter, emit_json
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.options import (
    DeviceOption,
    HeatOption,
    KvOption,
    LayoutOption,
    LoadOption,
    MoreTextArgument,
    ResidencyOption,
    TextOption,
    ThreadsOption,
    TokensOption,
    VramOption,
    WindowOption,
    check_window,
    encode_texts,
    running,
    show_notes,
)
from krasis.errors import InputError


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
    vram: VramOption = None,
    kv: KvOption = None,
    heat: HeatOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the loss on text, in nats per token."""
    from krasis.pack.reader import Pack
    from krasis.runtime.eval import Loss, text_loss
    from krasis.runtime.opening import open_engine
    from krasis.runtime.tokenizer import Tokenizer

    check_window(window)
    opened = Pack(pack)
    texts = encode_texts([*text, *(more or [])], Tokenizer(opened), tokens)
    where = running(device, threads, layout, load, vram, kv, heat, residency)
    with Reporter() as reporter:
        engine = open_engine(opened, where, context=window, progress=reporter)
    show_notes(engine.notes)
    losses = {}
    with Reporter("tokens") as reporter:
        reporter.start(f"scoring, {path} on {engine.backend.name}", sum(map(len, texts.values())))
        for name, ids in texts.items():
            losses[name] = text_loss(engine, ids, window, path, reporter.advance)
            if not losses[name].tokens:
                raise InputError("the text is too short to score", where=name, expected="2 tokens or more")
    total = sum(losses.values(), Loss(0.0, 0))
    if json:
        files = {name: {"nll": loss.nll, "tokens": loss.tokens} for name, loss in losses.items()}
        emit_json(
            {"nll": total.nll, "tokens": total.tokens, "files": files, "path": path, "device": engine.backend.name}
        )
        return
    for name, loss in {**losses, "all": total}.items():
        print(f"{name:<24} {loss.nll:.4f} nats/token over {loss.tokens} tokens")
