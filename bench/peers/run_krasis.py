"""Time krasis on a pack."""

from collections.abc import Iterable
from pathlib import Path

from bench.peers import timing
from krasis.models.qwen3_moe import Spec
from krasis.pack.reader import Pack
from krasis.pack.record import sections
from krasis.runtime.devices import open_backend
from krasis.runtime.engine import Engine


class Krasis:
    def __init__(self, pack: Pack, threads: int) -> None:
        backend, _ = open_backend("cpu", threads)
        self.engine = Engine(pack, backend, context=timing.CONTEXT)
        self.reset()

    def reset(self) -> None:
        self._state = self.engine.new_state()

    def append(self, tokens: list[int]) -> Iterable[float]:
        return self.engine.last_logits(tokens, self._state)


def bytes_per_token(pack: Pack, spec: Spec) -> int:
    """Bytes of weights that a decoded token reads: its row of the embedding, its experts, all of the rest."""
    total = 0
    for _, segment in pack.manifest.segments():
        used = spec.experts_per_token if segment.name.endswith(".experts") else 1
        for section in sections(segment.tensors, segment.layout):
            total += used * section.bytes // (spec.vocab_size if section.tensor == "embed" else 1)
    return total


def main() -> None:
    parser = timing.arguments(__doc__)
    parser.add_argument("pack", type=Path)
    options = parser.parse_args()
    pack = Pack(options.pack)
    model = Krasis(pack, options.threads)
    timing.measure(model, bytes_per_token(pack, model.engine.spec))


if __name__ == "__main__":
    main()
