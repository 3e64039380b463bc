"""krasis plan."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from krasis.cli.console import emit_json, note, parse_size
from krasis.cli.convert import read_experts, read_settings
from krasis.cli.inspect import JsonOption
from krasis.cli.options import HeatOption
from krasis.cli.synth import check_skew, read_config
from krasis.cli.tables import print_facts, print_grid
from krasis.errors import FitError, UsageError

if TYPE_CHECKING:
    from krasis.heat.routing import Routing
    from krasis.pack.manifest import Manifest
    from krasis.runtime.placement.host import HostPlan
    from krasis.runtime.placement.plan import DevicePlan, Plan
    from krasis.runtime.rates import Rates

CONTEXT, PROMPT = 16_384, 10_000


def plan(
    pack: Annotated[Path | None, typer.Argument(help="Pack folder; its manifest alone is read.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Plan for a config.json instead, as if its pack were made with the options below."),
    ] = None,
    expert_bits: Annotated[int | None, typer.Option(help="With --config, as of convert.")] = None,
    expert_codec: Annotated[str, typer.Option(help="With --config, as of convert.")] = "auto",
    group_size: Annotated[int, typer.Option(help="With --config, as of convert.")] = 128,
    dense_bits: Annotated[int, typer.Option(help="With --config, as of convert.")] = 8,
    vram: Annotated[
        str | None,
        typer.Option(help="GPU memory to use, such as 16GiB, or 16GiB,16GiB for two GPUs; none when not given."),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="Host memory to keep to; when not given, weights beyond it are noted.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens a sequence may take; 16384 or the model's.")] = None,
    kv: Annotated[Literal["bf16", "fp8"], typer.Option(help="Precision of cached keys and values.")] = "bf16",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt that speeds are of.")] = PROMPT,
    heat: HeatOption = None,
    skew: Annotated[
        float | None, typer.Option(help="Instead of --heat: experts as popular as synth --skew has them.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's rates first, and keep them.")
    ] = False,
    rates: Annotated[Path | None, typer.Option(metavar="FILE", help="Rates of another machine.")] = None,
    json: JsonOption = False,
) -> None:
    """Show memory and speed before anything runs."""
    from krasis.models.conform import spec_of
    from krasis.runtime.machine import available_ram
    from krasis.runtime.placement.host import plan_host
    from krasis.runtime.placement.outline import outline
    from krasis.runtime.placement.plan import PlacementError, Wishes
    from krasis.runtime.placement.plan import plan as plan_devices

    _check(pack, config, heat, skew, measure, rates)
    found = _rates(measure, rates)
    if pack is None and config is None:
        _print_rates(found, json)
        return
    where: object = pack or config
    manifest = _manifest(pack, config, (expert_codec, expert_bits), (dense_bits, group_size))
    context = _positive(
        "--context", min(CONTEXT, spec_of(manifest, where).max_positions) if context is None else context
    )
    prompt = _positive("--prompt-tokens", prompt_tokens)
    budgets = tuple(parse_size(size) for size in vram.split(",")) if vram is not None else ()
    limit = None if ram is None else parse_size(ram)
    if found.source == "assumed":
        note(f"rates are assumed, those of {found.machine}: measure this machine's with --measure")
    try:
        if not budgets:
            if heat or skew is not None:
                note("experts are placed on GPUs alone: without --vram a profile makes no difference")
            made = plan_host(manifest, found, context, kv, prompt, limit or available_ram(), where)
            notes, result = made.notes, _host_result(made, kv, found)
        else:
            routing = _routing(pack, manifest, heat, skew)
            if routing is None:
                note("no profile: all experts of a layer are taken as equally likely, which is the worst case")
            wishes = Wishes(budgets, context, kv, prompt, limit)
            placed = plan_devices(outline(manifest, where), found, routing, wishes)
            notes, result = _notes(placed, available_ram()), _result(placed)
    except FitError as error:
        if json:
            would_fit = error.would_fit if isinstance(error, PlacementError) else {}
            emit_json({"fits": False, "error": str(error), "would_fit": would_fit})
        raise
    for line in notes:
        note(line)
    if json:
        emit_json(result)
    else:
        _print(result)


def _check(
    pack: Path | None, config: Path | None, heat: str | None, skew: float | None, measure: bool, rates: Path | None
) -> None:
    if pack is not None and config is not None:
        raise UsageError("both a pack and --config are given", expected="one of them")
    if pack is None and config is None and not measure:
        raise UsageError("nothing to plan for", expected="a pack, --config FILE, or --measure alone")
    if heat is not None and (pack is None or skew is not None):
        raise UsageError("--heat goes with a pack, and without --skew")
    if measure and rates is not None:
        raise UsageError("both --measure and --rates are given", expected="one of them")
    check_skew(skew or 0.0)


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise UsageError(f"{flag} is {value}", expected="1 or more")
    return value


def _rates(measure: bool, file: Path | None) -> "Rates":
    from krasis.runtime import rates

    if measure:
        from krasis.runtime.measure import measure as measure_rates

        found = measure_rates()
        rates.save(found, rates.cache_path())
        return found
    return rates.known() if file is None else rates.load(file)


def _manifest(
    pack: Path | None, config: Path | None, experts: tuple[str, int | None], others: tuple[int, int]
) -> "Manifest":
    from krasis.pack.reader import read_manifest
    from krasis.synth.pack import Recipe, Synthesis

    if pack is not None:
        return read_manifest(pack)
    assert config is not None
    codec, bits = read_experts(*experts)
    tree, _ = read_config(config)
    return Synthesis(tree, Recipe(read_settings(bits, *others, "marlin"), codec)).manifest()


def _routing(pack: Path | None, manifest: "Manifest", heat: str | None, skew: float | None) -> "Routing | None":
    from krasis import models
    from krasis.heat import profile
    from krasis.models.conform import spec_of
    from krasis.synth import popularity

    if heat is not None:
        assert pack is not None
        return profile.load(pack, heat, manifest).routing()
    if skew is None:
        return None
    spec = spec_of(manifest, pack or "")
    return popularity.routing(spec, models.of(spec).moe_layers(spec), skew)


def _notes(made: "Plan", available: int) -> list[str]:
    notes = []
    if made.mode == "streamed":
        notes.append("dense weights do not fit: those of some layers pass through the GPU for every prompt and token")
    if made.chunk < made.wishes.prompt:
        notes.append(f"prompts are taken {made.chunk} tokens at a time, and weights streamed as often")
    if made.rates.assumed:
        notes.append(f"not measured here, so assumed: {', '.join(made.rates.assumed)}")
    if made.wishes.ram is None and made.ram > available:
        notes.append("weights on no device exceed the free memory of this machine: speeds are of one that has room")
    return notes


def _result(made: "Plan") -> dict[str, Any]:
    wishes = made.wishes
    return {
        "fits": True,
        "vram": [_device_result(number, device) for number, device in enumerate(made.devices)],
        "ram": made.ram,
        "resident_experts": made.resident_experts,
        "expected_hit_rate": made.hit_rate,
        "load_s": made.load_s,
        "prefill_tok_s": made.prefill_tok_s,
        "decode_tok_s": made.decode_tok_s,
        "limits": made.limits,
        "dense_weights": made.mode,
        "profiled": made.profiled,
        "context": wishes.context,
        "kv": wishes.kv,
        "prompt_tokens": wishes.prompt,
        "prefill_chunk": made.chunk,
        "prefill_parts": made.prefill_parts,
        "decode_parts": made.decode_parts,
        "layer_hit_rates": made.layer_hit_rates,
        "rates": _rates_result(made.rates),
    }


def _device_result(number: int, device: "DevicePlan") -> dict[str, Any]:
    return {
        "device": f"cuda:{number}",
        "budget": device.budget,
        "dense": device.dense,
        "kv": device.kv,
        "workspace": device.workspace.bytes,
        "workspace_parts": asdict(device.workspace),
        "experts": device.experts,
        "free": device.free,
        "resident_experts": len(device.residents),
    }


def _host_result(made: "HostPlan", kv: str, rates: "Rates") -> dict[str, Any]:
    prefill, decode = made.prefill_parts, made.decode_parts
    return {
        "fits": True,
        "vram": [],
        "ram": made.memory.resident,
        "ram_parts": {"weights": made.memory.weights, "kv": made.memory.kv, "workspace": made.memory.workspace},
        "resident_experts": 0,
        "expected_hit_rate": None,
        "load_s": 0.0,
        "prefill_tok_s": made.prompt / max(prefill.values()),
        "decode_tok_s": 1 / sum(decode.values()),
        "limits": {
            "prefill": max(prefill, key=prefill.__getitem__),
            "decode": max(decode, key=decode.__getitem__),
            "memory": "ram" if made.notes else "none",
        },
        "profiled": False,
        "context": made.memory.context,
        "kv": kv,
        "prompt_tokens": made.prompt,
        "prefill_parts": prefill,
        "decode_parts": decode,
        "rates": _rates_result(rates),
    }


def _rates_result(rates: "Rates") -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(rates)
    return found


def _print_rates(rates: "Rates", json: bool) -> None:
    found = _rates_result(rates)
    if json:
        emit_json(found)
    else:
        print_facts({name.replace("_", " "): _figure(value) for name, value in found.items()})


def _print(result: dict[str, Any]) -> None:
    if devices := result["vram"]:
        parts = ("dense", "kv", *devices[0]["workspace_parts"], "experts", "free", "budget")
        rows = [(part.replace("_", " "), *(_gib((d | d["workspace_parts"])[part]) for d in devices)) for part in parts]
        print_grid(("GPU memory, GiB", *(device["device"] for device in devices)), rows)
    limits, hit = result["limits"], result["expected_hit_rate"]
    facts = {
        "host memory": f"{_gib(result['ram'])} GiB",
        "resident experts": f"{result['resident_experts']}",
        "expected hit rate": None if hit is None else f"{hit:.1%}",
        "dense weights": result.get("dense_weights"),
        "load": f"{result['load_s']:.1f} s, once the pack is in memory" if devices else None,
        "prefill": f"{result['prefill_tok_s']:.0f} tok/s at most, limited by {limits['prefill']}",
        "decode": f"{result['decode_tok_s']:.1f} tok/s at most, mostly {limits['decode']}",
        "context, prompt": f"{result['context']}, {result['prompt_tokens']} tokens",
        "rates": f"{result['rates']['source']}, {result['rates']['machine']}",
    }
    print_facts({name: value for name, value in facts.items() if value is not None})


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _figure(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
