"""krasis bench on a GPU."""

from typing import TYPE_CHECKING, Any

from krasis.cli.console import Reporter, emit_json, human
from krasis.cli.options import show_notes
from krasis.cli.tables import print_facts, print_spreads, spread
from krasis.errors import KrasisError

if TYPE_CHECKING:
    from krasis.pack.reader import Pack
    from krasis.runtime.cuda.bench import HybridMeasured
    from krasis.runtime.cuda.engine import CudaEngine
    from krasis.runtime.opening import Where

SPREADS = ("prefill_tok_s", "ttft_s", "decode_tok_s", "ms_per_token")


def bench(
    pack: "Pack", where: "Where", prompt_tokens: int, decode_tokens: int, runs: int, *, agreement: bool, json: bool
) -> None:
    """Measure the machine, then the pack on it, and hold one against what the other allows."""
    from krasis.cli.bench import config_of
    from krasis.models.conform import read_spec
    from krasis.runtime import bench as benching
    from krasis.runtime.cuda.bench import measure
    from krasis.runtime.cuda.engine import CudaEngine
    from krasis.runtime.measure import measure as measure_rates
    from krasis.runtime.opening import open_engine

    rates = measure_rates()
    ids, prompt = benching.workload(pack, read_spec(pack).vocab_size, prompt_tokens + decode_tokens)
    engine = open_engine(pack, where, context=len(ids), rates=rates)
    assert isinstance(engine, CudaEngine)
    show_notes(engine.notes)
    compared = benching.agreement_tokens(engine) if agreement else 0
    with Reporter("tokens") as reporter:
        measured = measure(engine, ids, prompt_tokens, runs, reporter)
        distance = benching.agreement(pack, engine, ids[:compared]) if agreement else None
    config = config_of(pack, engine) | {
        "threads": engine.cpu.pool.threads,
        "isa": engine.cpu.pool.isa,
        "vram": engine.placement.devices[0].budget,
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "runs": runs,
        "agreement_tokens": compared,
        "agreement_limit": benching.AGREEMENT_LIMIT,
    }
    result = _result(engine, measured, distance) | {"device": engine.backend.name, "config": config}
    engine.close()
    if json:
        emit_json(result)
    else:
        _print(result)
    if result["status"] == "FAIL":
        expected = f"at most {benching.AGREEMENT_LIMIT}"
        raise KrasisError(f"the kernels are {distance:.3g} nats from the reference", where=pack.path, expected=expected)


def _result(engine: "CudaEngine", measured: "HybridMeasured", distance: float | None) -> dict[str, Any]:
    import msgspec

    from krasis.runtime.bench import AGREEMENT_LIMIT
    from krasis.runtime.cuda.bench import ceilings, decode_traffic, phases
    from krasis.runtime.work import bytes_per_token

    runs = [found.run for found in measured.runs]
    hits, allowed = decode_traffic(measured.runs).hit_rate, ceilings(engine, measured.runs)
    prefill, decode = (
        spread(figures) for figures in ([run.prefill_tok_s for run in runs], [run.decode_tok_s for run in runs])
    )
    position = runs[0].prompt + runs[0].decoded // 2
    return {
        "prefill_tok_s": prefill,
        "ttft_s": spread([run.ttft_s for run in runs]),
        "decode_tok_s": decode,
        "ms_per_token": spread([1000 / run.decode_tok_s for run in runs]),
        "hit_rate": hits,
        "expected_hit_rate": engine.placement.hit_rate,
        "bytes_per_token": bytes_per_token(engine.spec, engine.segments, engine.layers, engine.kv, position),
        "ceiling_tok_s": allowed.decode_tok_s,
        "ratio": decode["median"] / allowed.decode_tok_s,
        "prefill_ceiling_tok_s": allowed.prefill_tok_s,
        "prefill_ratio": prefill["median"] / allowed.prefill_tok_s,
        "prefill_parts": allowed.prefill_parts,
        "decode_parts": allowed.decode_parts,
        "phases": phases(engine, measured.runs),
        "vram_used": measured.used,
        "resident_experts": engine.placement.resident_experts,
        "started": engine.started.steps,
        "rates": msgspec.to_builtins(engine.rates),
        "agreement": distance,
        "status": "FAIL" if distance is not None and distance > AGREEMENT_LIMIT else "PASS",
    }


def _print(result: dict[str, Any]) -> None:
    print_facts({name.replace("_", " "): value for name, value in result["config"].items()})
    print_spreads({name: result[name] for name in SPREADS})
    hits, phases = result["hit_rate"], result["phases"]
    moved = {
        phase: ", ".join(
            f"{human(found['bytes'])} by {path} at {human(found['rate'])}/s" for path, found in paths.items()
        )
        for phase, paths in phases.items()
    }
    decode, prefill = (f"{result[name]:.4g} tok/s" for name in ("ceiling_tok_s", "prefill_ceiling_tok_s"))
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["started"].items())
    print_facts(
        {
            "hit rate": "no experts" if hits is None else f"{hits:.1%}, {result['expected_hit_rate']:.1%} expected",
            "GPU memory": f"{human(result['vram_used'])} in use, {human(result['config']['vram'])} allowed",
            "prompt": moved["prefill"] or "nothing moved",
            "each token": moved["decode"] or "nothing moved",
            "decode": f"{result['ratio']:.0%} of the {decode} that the machine allows",
            "prefill": f"{result['prefill_ratio']:.0%} of the {prefill} that the machine allows",
            "start": steps,
            "agreement": "not measured" if result["agreement"] is None else f"{result['agreement']:.3g} nats",
            "status": result["status"],
        }
    )
