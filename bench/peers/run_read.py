"""Time a plain read of memory in huge pages by all threads."""

import json
import statistics
import time

from bench import moe
from bench.peers import timing
from krasis.native.cpu import Pool

BYTES = 2 << 30
PASSES = 7


def main() -> None:
    pool = Pool(timing.arguments(__doc__).parse_args().threads)
    data = moe.memory(BYTES)

    def once() -> float:
        start = time.perf_counter()
        pool.read(data)
        return data.nbytes / (time.perf_counter() - start)

    once()
    print(json.dumps({"bytes_per_s": statistics.median(once() for _ in range(PASSES))}))


if __name__ == "__main__":
    main()
