"""Time transformers in bfloat16 on a checkpoint."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench.peers import timing


class Transformers:
    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
        self.reset()

    def reset(self) -> None:
        self._cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def append(self, tokens: list[int]) -> Iterable[float]:
        ids = torch.tensor([tokens])
        return self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[0, -1]


def bytes_per_token(model: torch.nn.Module) -> int:
    """Bytes of weights that a decoded token reads: its row of the embedding, its experts, all of the rest."""
    config, total = model.config, 0
    for name, weight in model.named_parameters():
        if ".experts." in name:
            total += weight.nbytes * config.num_experts_per_tok // config.num_experts
        else:
            total += weight.nbytes // (config.vocab_size if "embed_tokens" in name else 1)
    return total


def main() -> None:
    parser = timing.arguments(__doc__)
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    model = Transformers(options.checkpoint, options.threads)
    timing.measure(model, bytes_per_token(model.model), repeats=1)


if __name__ == "__main__":
    main()
