"""krasis bench."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli import bench_gpu
from krasis.cli.console import Reporter, emit_json, human
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.options import (
    DeviceOption,
    HeatOption,
    KvOption,
    LayoutOption,
    LoadOption,
    ThreadsOption,
    VramOption,
    running,
    show_notes,
)
from krasis.cli.tables import print_facts, print_spreads, spread
from krasis.errors import KrasisError, UsageError

if TYPE_CHECKING:
    from krasis.pack.reader import Pack
    from krasis.runtime.bench import Measured
    from krasis.runtime.engine import Engine

SPREADS = ("prefill_tok_s", "ttft_s", "decode_tok_s", "ms_per_token", "read_gb_s")


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
    threads: ThreadsOption = None,
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
    where = running(device, threads, layout, load, vram, kv, heat)
    if runs_on_gpu(opened, where):
        bench_gpu.bench(opened, where, prompt_tokens, decode_tokens, runs, json=json, agreement=agreement)
        return
    backend, notes = open_backend(device, threads)
    if not isinstance(backend, CpuBackend):
        raise UsageError("the reference is not made to be fast", where="--device", expected="auto or cpu")
    ids, prompt = benching.workload(opened, spec.vocab_size, context)
    memory = memory_to_read()
    with Reporter() as reporter:
        engine = Engine(opened, backend, context=context, kv=kv, layout=layout, load=load, progress=reporter)
    show_notes(notes + engine.notes)
    compared = benching.agreement_tokens(engine) if agreement else 0
    with Reporter("tokens") as reporter:
        measured = benching.measure(opened, engine, backend.pool, memory, ids, prompt_tokens, runs, reporter)
        del memory
        distance = None
        if agreement:
            reporter.start("comparing with the reference", compared)
            distance = benching.agreement(opened, engine, ids[:compared])
            reporter.advance(compared)
    config = config_of(opened, engine) | {
        "threads": backend.pool.threads,
        "isa": backend.pool.isa,
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "runs": runs,
        "read_bytes": READ_BYTES,
        "agreement_tokens": compared,
        "agreement_limit": benching.AGREEMENT_LIMIT,
    }
    result = _result(engine, measured, distance) | {"device": backend.name, "config": config}
    if json:
        emit_json(result)
    else:
        _print(result)
    if result["status"] == "FAIL":
        expected = f"at most {benching.AGREEMENT_LIMIT}"
        raise KrasisError(f"the kernels are {distance:.3g} nats from the reference", where=pack, expected=expected)


def config_of(pack: "Pack", engine: "Engine") -> dict[str, Any]:
    """What ran."""
    settings = pack.manifest.settings
    return {
        "model_type": pack.manifest.model["model_type"],
        "root_hash": pack.manifest.root,
        "expert_bits": settings.expert_bits,
        "dense_bits": settings.dense_bits,
        "group_size": settings.group_size,
        "layouts": sorted({segment.layout for segment in engine.segments}),
        "load": engine.plan.load,
        "kv": engine.kv,
    }


def _result(engine: "Engine", measured: "Measured", distance: float | None) -> dict[str, Any]:
    from krasis.runtime.bench import AGREEMENT_LIMIT
    from krasis.runtime.work import bytes_per_token, products_per_token

    first = measured.runs[0]
    size = bytes_per_token(engine.spec, engine.segments, engine.layers, engine.kv, first.prompt + first.decoded // 2)
    read, prefill, decode = (
        spread(figures)
        for figures in (
            [rate / 1e9 for rate in measured.read_rates],
            [run.prefill_tok_s for run in measured.runs],
            [run.decode_tok_s for run in measured.runs],
        )
    )
    ceiling = read["median"] * 1e9 / size
    prefill_ceiling = measured.product_rate / products_per_token(engine.spec, engine.segments)
    return {
        "prefill_tok_s": prefill,
        "ttft_s": spread([run.ttft_s for run in measured.runs]),
        "decode_tok_s": decode,
        "ms_per_token": spread([1000 / run.decode_tok_s for run in measured.runs]),
        "hit_rate": None,
        "read_gb_s": read,
        "bytes_per_token": size,
        "ceiling_tok_s": ceiling,
        "ratio": decode["median"] / ceiling,
        "prefill_ceiling_tok_s": prefill_ceiling,
        "prefill_ratio": prefill["median"] / prefill_ceiling,
        "agreement": distance,
        "status": "FAIL" if distance is not None and distance > AGREEMENT_LIMIT else "PASS",
    }


def _print(result: dict[str, Any]) -> None:
    print_facts({name.replace("_", " "): value for name, value in result["config"].items()})
    print_spreads({name: result[name] for name in SPREADS})
    decode, prefill = (f"{result[name]:.4g} tok/s" for name in ("ceiling_tok_s", "prefill_ceiling_tok_s"))
    distance = "not measured" if result["agreement"] is None else f"{result['agreement']:.3g} nats"
    print_facts(
        {
            "bytes a token": human(result["bytes_per_token"]),
            "decode": f"{result['ratio']:.0%} of the {decode} that reading them allows",
            "prefill": f"{result['prefill_ratio']:.0%} of the {prefill} that products alone would take",
            "agreement": distance,
            "status": result["status"],
        }
    )
