"""What krasis bench tells whatever it ran on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from krasis.cli.console import emit_json
from krasis.cli.tables import print_facts, print_spreads, spread
from krasis.errors import KrasisError

if TYPE_CHECKING:
    from krasis.native.cpu import Pool
    from krasis.pack.reader import Pack
    from krasis.runtime.bench import Run
    from krasis.runtime.engine import Engine


def config_of(pack: "Pack", engine: "Engine", pool: "Pool", asked: dict[str, Any]) -> dict[str, Any]:
    """What ran: the pack, the engine, the CPU's threads, and what was asked for."""
    from krasis.runtime.bench import AGREEMENT_LIMIT

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
        "threads": pool.threads,
        "isa": pool.isa,
        **asked,
        "agreement_limit": AGREEMENT_LIMIT,
    }


def drafts_of(runs: "list[Run]") -> dict[str, int]:
    """Tokens of all runs that were drafted, and of these accepted."""
    return {"drafted": sum(run.drafted for run in runs), "accepted": sum(run.accepted for run in runs)}


def speeds(runs: "list[Run]") -> dict[str, dict[str, float]]:
    """Figure -> its median and range."""
    return {
        "prefill_tok_s": spread([run.prefill_tok_s for run in runs]),
        "ttft_s": spread([run.ttft_s for run in runs]),
        "decode_tok_s": spread([run.decode_tok_s for run in runs]),
        "ms_per_token": spread([1000 / run.decode_tok_s for run in runs]),
    }


def bytes_read(engine: "Engine", run: "Run") -> int:
    """Bytes that a token in the middle of those decoded reads."""
    from krasis.runtime.work import bytes_per_token

    position = run.prompt + run.decoded // 2
    return bytes_per_token(engine.spec, engine.segments, engine.layers, engine.kv, position)


def verdict(distance: float | None) -> dict[str, Any]:
    """How far the reference is, None where that was not measured, and whether that will do."""
    from krasis.runtime.bench import AGREEMENT_LIMIT

    return {
        "agreement": distance,
        "status": "FAIL" if distance is not None and distance > AGREEMENT_LIMIT else "PASS",
    }


def tell(
    result: dict[str, Any], facts: Callable[[dict[str, Any]], dict[str, object]], pack: "Pack", *, json: bool
) -> None:
    """The result as JSON, or as tables, the last one of `facts`. Raises KrasisError where it is a failure."""
    distance = result["agreement"]
    if json:
        emit_json(result)
    else:
        print_facts({name.replace("_", " "): value for name, value in result["config"].items()})
        print_spreads({name: found for name, found in result.items() if isinstance(found, dict) and "median" in found})
        apart = "not measured" if distance is None else f"{distance:.3g} nats"
        print_facts(facts(result) | {"agreement": apart, "status": result["status"]})
    if result["status"] == "FAIL":
        expected = f"at most {result['config']['agreement_limit']}"
        raise KrasisError(f"the kernels are {distance:.3g} nats from the reference", where=pack.path, expected=expected)
