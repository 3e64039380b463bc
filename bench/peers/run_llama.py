"""Time llama.cpp or ik_llama.cpp on a GGUF, through the C API of its Python package.

Both packages bind the same few functions; their structures differ and come from the package.
"""

import ctypes
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from bench.peers import gguf_file, timing

APIS = {"llama_cpp": "llama_cpp.llama_cpp", "ik_llama_cpp": "ik_llama_cpp._ctypes_api"}


class Llama:
    """`repacked`: ik_llama.cpp reorders the weights as it loads them, into huge pages. llama.cpp always does."""

    def __init__(self, api: ModuleType, path: Path, threads: int, *, repacked: bool) -> None:
        self._api = api
        api.llama_backend_init()
        loading = api.llama_model_default_params()
        if repacked:
            loading.repack_tensors, loading.use_thp, loading.use_mmap = True, True, False
        self._model = api.llama_model_load_from_file(str(path).encode(), loading)
        if not self._model:
            raise SystemExit(f"{path}: {api.__name__} can't load it")
        running = api.llama_context_default_params()
        running.n_ctx, running.n_batch, running.n_ubatch = timing.CONTEXT, timing.PROMPT, timing.PROMPT
        running.n_threads = running.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, running)
        self._batch = api.llama_batch_init(timing.PROMPT, 0, 1)
        self._position = 0

    def reset(self) -> None:
        if hasattr(self._api, "llama_kv_cache_clear"):
            self._api.llama_kv_cache_clear(self._context)
        else:
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._position = 0

    def append(self, tokens: list[int]) -> Iterable[float]:
        batch, last = self._batch, len(tokens) - 1
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == last
        if status := self._api.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode returned {status}")
        self._position += len(tokens)
        logits = self._api.llama_get_logits_ith(self._context, last)
        return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * timing.VOCABULARY)).contents


def main() -> None:
    parser = timing.arguments(__doc__)
    parser.add_argument("package", choices=APIS)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--repacked", action="store_true")
    options = parser.parse_args()
    api = importlib.import_module(APIS[options.package])
    model = Llama(api, options.gguf, options.threads, repacked=options.repacked)
    timing.measure(model, gguf_file.bytes_per_token(options.gguf))


if __name__ == "__main__":
    main()
