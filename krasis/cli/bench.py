"""krasis bench."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli import bench_gpu
from krasis.cli.bench_figures import bytes_read, config_of, drafts_of, speeds, tell, verdict
from krasis.cli.console import Reporter, human
from krasis.cli.inspect import JsonOption, PackArgument
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
from krasis.cli.tables import spread
from krasis.errors import UsageError

if TYPE_CHECKING:
    from krasis.runtime.bench import Measured
    from krasis.runtime.engine import Engine


def bench(
    pack: PackArgument,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 10_000,
    decode_tokens: Annotated[int, typer.Option(help="Tokens decoded after it, one by one.")] = 64,
    runs: Annotated[int, typer.Option(help="Measure so often.")] = 3,
    agreement: Annotated[
        bool, typer.Option("--agreement/--no-agreement", help="Compare a few tokens with the reference, which is slow.")
    ] = True,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    load: LoadOption = "mapped",
    vram: VramOption = None,
    kv: KvOption = None,
    heat: HeatOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    speculate: SpeculateOption = "off",
    json: JsonOption = False,
) -> None:
    """Measure prefill and decode, and hold them against what this machine's memory and kernels allow."""
    from krasis.models.conform import read_spec
    from krasis.pack.reader import Pack
    from krasis.runtime import bench as benching
    from krasis.runtime.cpu import CpuBackend
    from krasis.runtime.devices import open_backend
    from krasis.runtime.engine import Engine
    from krasis.runtime.limits import READ_BYTES, memory_to_read
    from krasis.runtime.opening import runs_on_gpu
    from krasis.runtime.plan import check_context

    for flag, value in {"--prompt-tokens": prompt_tokens, "--decode-tokens": decode_tokens, "--runs": runs}.items():
        if value < 1:
            raise UsageError(f"{flag} is {value}", expected="1 or more")
    opened = Pack(pack)
    spec, context = read_spec(opened), prompt_tokens + decode_tokens
    check_context(spec, context, "--prompt-tokens, --decode-tokens")
    where = running(device, threads, layout, load, vram, kv, heat, residency)
    drafts = speculate == "auto"
    if runs_on_gpu(opened, where):
        bench_gpu.bench(
            opened, where, prompt_tokens, decode_tokens, runs, drafts=drafts, json=json, agreement=agreement
        )
        return
    backend, notes = open_backend(device, threads)
    if not isinstance(backend, CpuBackend):
        raise UsageError("the reference is not made to be fast", where="--device", expected="auto or cpu")
    ids, prompt = benching.workload(opened, spec.vocab_size, context)
    memory = memory_to_read()
    with Reporter() as reporter:
        engine = Engine(opened, backend, context=context, kv=kv, layout=layout, load=load, progress=reporter)
    show_notes(notes + engine.notes)
    told = len(engine.notes)
    compared = benching.agreement_tokens(engine) if agreement else 0
    with Reporter("tokens") as reporter:
        measured = benching.measure(
            opened, engine, backend.pool, memory, ids, prompt_tokens, runs, reporter, drafts=drafts
        )
        del memory
        distance = None
        if agreement:
            reporter.start("comparing with the reference", compared)
            distance = benching.agreement(opened, engine, ids[:compared])
            reporter.advance(compared)
    show_notes(engine.notes[told:])
    asked = {
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "runs": runs,
        "speculate": "auto" if drafts else "off",
        "read_bytes": READ_BYTES,
        "agreement_tokens": compared,
    }
    config = config_of(opened, engine, backend.pool, asked)
    result = _result(engine, measured) | verdict(distance) | {"device": backend.name, "config": config}
    tell(result, _facts, opened, json=json)


def _result(engine: "Engine", measured: "Measured") -> dict[str, Any]:
    from krasis.runtime.work import products_per_token

    found, read = speeds(measured.runs), spread([rate / 1e9 for rate in measured.read_rates])
    size = bytes_read(engine, measured.runs[0])
    ceiling = read["median"] * 1e9 / size
    prefill_ceiling = measured.product_rate / products_per_token(engine.spec, engine.segments)
    return {
        **found,
        **drafts_of(measured.runs),
        "hit_rate": None,
        "read_gb_s": read,
        "bytes_per_token": size,
        "ceiling_tok_s": ceiling,
        "ratio": found["decode_tok_s"]["median"] / ceiling,
        "prefill_ceiling_tok_s": prefill_ceiling,
        "prefill_ratio": found["prefill_tok_s"]["median"] / prefill_ceiling,
    }


def _facts(result: dict[str, Any]) -> dict[str, object]:
    decode, prefill = (f"{result[name]:.4g} tok/s" for name in ("ceiling_tok_s", "prefill_ceiling_tok_s"))
    return {
        "bytes a token": human(result["bytes_per_token"]),
        "decode": f"{result['ratio']:.0%} of the {decode} that reading them allows",
        "prefill": f"{result['prefill_ratio']:.0%} of the {prefill} that products alone would take",
    }
