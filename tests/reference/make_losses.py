"""Losses of the bundled models by transformers in float32: python tests/reference/make_losses.py > losses.json"""

import json
import platform
from pathlib import Path

import torch
import transformers
from torch.nn import functional

ROOT = Path(__file__).parents[2]
TOKENS, WINDOW = 8192, 512


@torch.inference_mode()
def summed_loss(model, ids):
    """Every token of a window but the first, given those before it; windows know nothing of each other."""
    total = 0.0
    for window in ids.split(WINDOW):
        logits = model(window[None]).logits[0, :-1]
        total += functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return total


def losses(folder):
    """File -> loss in nats a token, all tokens of all files together, and how many were scored."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    quantized = "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    options = {"quantization_config": transformers.Mxfp4Config(dequantize=True)} if quantized else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    files = {}
    for path in sorted((ROOT / "examples/text").glob("dev-*.txt")):
        ids = torch.tensor(tokenizer.encode(path.read_text(encoding="utf-8"))[:TOKENS])
        scored = len(ids) - len(ids.split(WINDOW))
        files[path.name] = {"nll": summed_loss(model, ids) / scored, "tokens": scored}
    tokens = sum(entry["tokens"] for entry in files.values())
    total = sum(entry["nll"] * entry["tokens"] for entry in files.values())
    return {"nll": total / tokens, "tokens": tokens, "files": files}


def main():
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    result = {
        "command": "python tests/reference/make_losses.py",
        "versions": versions,
        "dtype": "float32",
        "window": WINDOW,
        "tokens_per_file": TOKENS,
        "models": {folder.name: losses(folder) for folder in sorted((ROOT / "examples/models").iterdir())},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
