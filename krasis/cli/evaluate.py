"""krasis eval: the loss of a pack on text."""

from typing import Annotated, Literal

import typer

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
    check_window,
    encode_texts,
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

    check_window(window)
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
