"""krasis run: answer a prompt, or chat on a terminal."""

import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli.console import Reporter, emit_json, human
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.moved import Watch, paths
from krasis.cli.options import (
    DeviceOption,
    HeatOption,
    KvOption,
    LayoutOption,
    LoadOption,
    ResidencyOption,
    SpeculateOption,
    ThreadsOption,
    VramOption,
    running,
    show_notes,
)
from krasis.errors import InputError, UsageError

if TYPE_CHECKING:
    from krasis.runtime.engine import Engine
    from krasis.runtime.generate import Answer
    from krasis.runtime.sampler import Sampler
    from krasis.runtime.state import SequenceState
    from krasis.runtime.tokenizer import Message, Tokenizer

CHAT_CONTEXT = 8192


def run(
    pack: PackArgument,
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads standard input. None: chat.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that hold this mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler; drawn when not given.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeat for more.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens a conversation may take.")] = None,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    load: LoadOption = "mapped",
    vram: VramOption = None,
    kv: KvOption = None,
    heat: HeatOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    speculate: SpeculateOption = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and memory after the answer.")] = False,
    json: JsonOption = False,
) -> None:
    """Answer a prompt, or chat on a terminal when none is given."""
    from krasis.models.conform import read_spec
    from krasis.pack.reader import Pack
    from krasis.runtime.opening import open_engine
    from krasis.runtime.sampler import Sampler, Sampling
    from krasis.runtime.tokenizer import Tokenizer

    if max_tokens < 1:
        raise UsageError(f"--max-tokens is {max_tokens}", expected="1 or more")
    if context is not None and context < 1:
        raise UsageError(f"--context is {context}", expected="1 or more")
    chatting = prompt is None
    if chatting and (json or raw or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise UsageError("no prompt", expected="--prompt TEXT, --prompt - to read it, or a terminal to chat on")
    seed = secrets.randbits(32) if seed is None else seed
    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    opened = Pack(pack)
    tokenizer = Tokenizer(opened)
    where = running(device, threads, layout, load, vram, kv, heat, residency)
    ids = [] if prompt is None else _prompt_ids(tokenizer, _read(prompt), raw, system)
    context = context or (min(CHAT_CONTEXT, read_spec(opened).max_positions) if chatting else len(ids) + max_tokens)
    with Reporter() as reporter:
        engine = open_engine(opened, where, context=context, progress=reporter)
    show_notes(engine.notes)
    # What it saves and costs on a GPU is planned, not measured.
    drafts = speculate == "auto" or (speculate is None and not engine.runs_ahead)
    session = Session(engine, tokenizer, Sampler(sampling), max_tokens, stop or [], drafts)
    if chatting:
        _chat(session, system, stats)
        return
    told = len(engine.notes)
    answer, moved = session.answer(ids, engine.new_state(), quiet=json)
    show_notes(engine.notes[told:])
    if json:
        emit_json(_result(answer, engine.hit_rate, seed) | moved)
    elif stats:
        _print_stats(answer, engine, moved)


@dataclass(frozen=True)
class Session:
    """An engine, how to sample from it, and whether with drafts."""

    engine: "Engine"
    tokenizer: "Tokenizer"
    sampler: "Sampler"
    max_tokens: int
    stops: list[str]
    drafts: bool

    def answer(self, ids: list[int], state: "SequenceState", *, quiet: bool = False) -> tuple["Answer", dict[str, Any]]:
        """Generate from `ids`, streaming the text to stdout unless `quiet`; and what moved meanwhile, see `Watch`."""
        from krasis.runtime.drafts import Drafter
        from krasis.runtime.generate import generate

        room = self.engine.plan.context - state.position - len(ids)
        if room < 1:
            expected = f"at most {self.engine.plan.context}, one of them left to generate"
            raise InputError(
                f"the conversation takes {state.position + len(ids)} tokens", where="--context", expected=expected
            )
        watch = Watch(self.engine)
        watch.look()
        answer = generate(
            self.engine,
            self.tokenizer,
            ids,
            state,
            self.sampler,
            max_tokens=min(self.max_tokens, room),
            stops=self.stops,
            show=(lambda text: None) if quiet else _show,
            drafter=Drafter(self.engine.costs) if self.drafts else None,
            between=watch.look,
        )
        watch.look()
        if not quiet:
            print()
        return answer, watch.found(answer)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _read(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt is not UTF-8: byte {error.start}", where="standard input") from error


def _prompt_ids(tokenizer: "Tokenizer", prompt: str, raw: bool, system: str | None) -> list[int]:
    if raw and system is not None:
        raise UsageError("--system needs a chat template", where="--raw", hint="drop one of them")
    ids = tokenizer.encode(prompt) if raw else tokenizer.chat([*_system(system), {"role": "user", "content": prompt}])
    if not ids:
        raise InputError("the prompt is empty", expected="at least one token")
    return ids


def _system(text: str | None) -> "list[Message]":
    return [] if text is None else [{"role": "system", "content": text}]


def _chat(session: Session, system: str | None, stats: bool) -> None:
    messages = _system(system)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        try:
            # The template may rewrite earlier turns, so the conversation is read anew.
            answer, moved = session.answer(session.tokenizer.chat(messages), session.engine.new_state())
        except KeyboardInterrupt:
            print("\n(interrupted; Ctrl-D ends the chat)")
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer.text})
        if stats:
            _print_stats(answer, session.engine, moved)


def _result(answer: "Answer", hit_rate: float | None, seed: int) -> dict[str, Any]:
    speed = answer.decode_tok_s
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "prefill_tok_s": answer.prefill_tok_s,
        "ttft_s": answer.ttft_s,
        "decode_tok_s": speed,
        "ms_per_token": 1000 / speed if speed else None,
        "hit_rate": hit_rate,
        "drafted": answer.drafted,
        "accepted": answer.accepted,
        "seed": seed,
    }


def _print_stats(answer: "Answer", engine: "Engine", moved: dict[str, Any]) -> None:
    decode = f"{answer.decode_tok_s:.1f} tok/s" if answer.decode_tok_s else "no second token"
    weights, cache = human(engine.plan.weights), human(engine.plan.kv)
    hits = "" if engine.hit_rate is None else f", {engine.hit_rate:.1%} of experts on the GPU"
    drafts = f", {answer.accepted} of {answer.drafted} drafted right" if answer.drafted else ""
    lines = [
        f"prompt: {answer.prompt_tokens} tokens at {answer.prefill_tok_s:.1f} tok/s, first after {answer.ttft_s:.3f} s",
        f"answer: {len(answer.token_ids)} tokens at {decode}{hits}{drafts}",
        f"memory: {weights} of weights {engine.plan.load}, {cache} of cache; backend {engine.backend.name}",
    ]
    if moved:
        by = paths(moved["phases"], moved["rates"])
        waited = f"{1e3 * moved['waited_s_per_token']:.2f} ms of waiting for the CPU"
        lines.append(f"moved: for the prompt {by['prefill']}; for each token {by['decode']}, {waited}")
    print("\n".join(lines), file=sys.stderr)
