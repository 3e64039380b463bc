"""krasis bench on a GPU."""

from typing import TYPE_CHECKING, Any

from krasis.cli.bench_figures import bytes_read, config_of, drafts_of, speeds, tell, verdict
from krasis.cli.console import Reporter, human
from krasis.cli.moved import paths
from krasis.cli.options import show_notes

if TYPE_CHECKING:
    from krasis.pack.reader import Pack
    from krasis.runtime.cuda.bench import HybridMeasured
    from krasis.runtime.cuda.engine import CudaEngine
    from krasis.runtime.opening import Where


def bench(
    pack: "Pack",
    where: "Where",
    prompt_tokens: int,
    decode_tokens: int,
    runs: int,
    *,
    drafts: bool,
    agreement: bool,
    json: bool,
) -> None:
    """Measure the machine, then the pack on it, and hold one against what the other allows."""
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
        measured = measure(engine, ids, prompt_tokens, runs, reporter, drafts=drafts)
        distance = benching.agreement(pack, engine, ids[:compared]) if agreement else None
    asked = {
        "vram": engine.placement.devices[0].budget,
        "residency": "follow" if engine.residents.moving else "static",
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "runs": runs,
        "speculate": "auto" if drafts else "off",
        "agreement_tokens": compared,
    }
    config = config_of(pack, engine, engine.cpu.pool, asked)
    result = _result(engine, measured) | verdict(distance) | {"device": engine.backend.name, "config": config}
    engine.close()
    tell(result, _facts, pack, json=json)


def _result(engine: "CudaEngine", measured: "HybridMeasured") -> dict[str, Any]:
    import msgspec

    from krasis.runtime.cuda.bench import ceilings, decode_traffic, phases, waited_s

    runs = [found.run for found in measured.runs]
    found, allowed, moved = speeds(runs), ceilings(engine, measured.runs), decode_traffic(measured.runs)
    return {
        **found,
        **drafts_of(runs),
        "hit_rate": moved.hit_rate,
        "static_hit_rate": moved.static_hit_rate,
        "expected_hit_rate": engine.placement.hit_rate,
        "exchanged_bytes_per_token": moved.exchanged / sum(run.decoded for run in runs),
        "bytes_per_token": bytes_read(engine, runs[0]),
        "ceiling_tok_s": allowed.decode_tok_s,
        "ratio": found["decode_tok_s"]["median"] / allowed.decode_tok_s,
        "prefill_ceiling_tok_s": allowed.prefill_tok_s,
        "prefill_ratio": found["prefill_tok_s"]["median"] / allowed.prefill_tok_s,
        "prefill_parts": allowed.prefill_parts,
        "decode_parts": allowed.decode_parts,
        "phases": phases(engine, measured.runs),
        "waited_s_per_token": waited_s(measured.runs),
        "vram_used": measured.used,
        "resident_experts": engine.placement.resident_experts,
        "started": engine.started.steps,
        "rates": msgspec.to_builtins(engine.rates),
    }


def _facts(result: dict[str, Any]) -> dict[str, object]:
    hits, phases = result["hit_rate"], result["phases"]
    moved, waited = paths(phases, result["rates"]), f"{1e3 * result['waited_s_per_token']:.2f} ms waiting for the CPU"
    decode, prefill = (f"{result[name]:.4g} tok/s" for name in ("ceiling_tok_s", "prefill_ceiling_tok_s"))
    return {
        "hit rate": "no experts" if hits is None else _hits(result),
        "GPU memory": f"{human(result['vram_used'])} in use, {human(result['config']['vram'])} allowed",
        "prompt": moved["prefill"],
        "each token": f"{moved['decode']}, {waited}",
        "decode": f"{result['ratio']:.0%} of the {decode} that the machine allows",
        "prefill": f"{result['prefill_ratio']:.0%} of the {prefill} that the machine allows",
        "start": ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["started"].items()),
    }


def _hits(result: dict[str, Any]) -> str:
    found = f"{result['hit_rate']:.1%}, {result['expected_hit_rate']:.1%} expected"
    if result["config"]["residency"] == "static":
        return found
    moved = human(result["exchanged_bytes_per_token"])
    return f"{found}, {result['static_hit_rate']:.1%} without exchanging {moved} a token"
