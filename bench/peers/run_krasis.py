"""Time krasis on a pack."""

from collections.abc import Iterable
from pathlib import Path

from bench.peers import timing
from krasis.pack.reader import Pack
from krasis.runtime.devices import open_backend
from krasis.runtime.engine import Engine
from krasis.runtime.work import weights_per_token


class Krasis:
    def __init__(self, pack: Pack, threads: int) -> None:
        backend, _ = open_backend("cpu", threads)
        self.engine = Engine(pack, backend, context=timing.CONTEXT)
        self.reset()

    def reset(self) -> None:
        self._state = self.engine.new_state()

    def append(self, tokens: list[int]) -> Iterable[float]:
        return self.engine.last_logits(tokens, self._state)


def main() -> None:
    parser = timing.arguments(__doc__)
    parser.add_argument("pack", type=Path)
    options = parser.parse_args()
    model = Krasis(Pack(options.pack), options.threads)
    timing.measure(model, weights_per_token(model.engine.spec, model.engine.segments))


if __name__ == "__main__":
    main()
