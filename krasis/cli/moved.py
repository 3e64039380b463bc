"""What moved on a GPU while it ran, as a person reads it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from krasis.cli.console import human

if TYPE_CHECKING:
    from krasis.runtime.cuda.figures import Traffic
    from krasis.runtime.engine import Engine
    from krasis.runtime.generate import Answer


def paths(phases: dict[str, dict[str, dict[str, float]]], rates: dict[str, Any]) -> dict[str, str]:
    """Phase -> bytes by each path, and their rate beside what the machine's `rates` say the path can do."""
    ceilings = {"PCIe": rates["pcie"], "CPU": rates["host_read"]}

    def told(path: str, found: dict[str, float]) -> str:
        return f"{human(found['bytes'])} by {path} at {found['rate'] / 1e9:.3g} of {ceilings[path] / 1e9:.3g} GB/s"

    return {
        phase: ", ".join(told(path, found) for path, found in moved.items()) or "nothing moved"
        for phase, moved in phases.items()
    }


@dataclass
class Watch:
    """Looks at what moves on the GPU of an engine, which may have none: before an answer, after its first token, and
    after the last.
    """

    engine: "Engine"
    _seen: list["Traffic"] = field(default_factory=list)

    def look(self) -> None:
        from krasis.runtime.cuda.engine import CudaEngine

        if isinstance(self.engine, CudaEngine):
            self._seen.append(self.engine.traffic())

    def found(self, answer: "Answer") -> dict[str, Any]:
        """`phases` as `krasis bench` has them, and seconds that a token waited for the CPU; none without a GPU."""
        import msgspec

        from krasis.runtime.bench import Run
        from krasis.runtime.cuda.bench import HybridRun, phases, waited_s
        from krasis.runtime.cuda.engine import CudaEngine

        if not isinstance(self.engine, CudaEngine):
            return {}
        before, between, after = self._seen
        run = Run(answer.prompt_tokens, max(len(answer.token_ids) - 1, 1), answer.ttft_s, answer.decode_s)
        runs = [HybridRun(run, between - before, after - between)]
        rates = msgspec.to_builtins(self.engine.rates)
        return {"phases": phases(self.engine, runs), "waited_s_per_token": waited_s(runs), "rates": rates}
