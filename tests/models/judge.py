"""transformers in float32, which judges every forward, and what compares with it.

Both sides compute in float32 and differ in the order of their sums, so logits agree to about 1e-6 of the largest, and
in the angles of rotary embedding, which transformers rounds: to 2e-5 after 2,000 tokens. TOLERANCE leaves room for
other processors' kernels and is far below what any wrong formula would make.
"""

import json

import pytest
import torch
from torch.nn import functional

transformers = pytest.importorskip("transformers", reason="transformers, which judges the forward, is not installed")

TOLERANCE = 3e-5
DEVICES = ("reference", "cpu")


def difference(found, expected):
    """The largest difference, relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def load(folder):
    # The other implementations of experts want sizes that are multiples of 16 bytes.
    options = {"dtype": torch.float32, "experts_implementation": "eager"}
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.inference_mode()
def judged(model, ids):
    """Logits [tokens, vocabulary]."""
    return model(torch.tensor([ids])).logits[0]


def chunked_logits(engine, ids, chunk):
    """Logits [tokens, vocabulary] of a sequence that is appended `chunk` tokens at a time."""
    state = engine.new_state()
    return torch.cat([engine.logits(engine.all_hidden(ids[i : i + chunk], state)) for i in range(0, len(ids), chunk)])


def round_trip(weight, codec, group_size):
    """Quantize and dequantize along the last dimension, filled with zeros to whole groups."""
    k = weight.shape[-1]
    rows = functional.pad(weight.reshape(-1, k), (0, -k % group_size))
    return codec.dequantize(codec.quantize(rows, group_size))[:, :k].reshape(weight.shape)


def random_model(model_class, config, folder):
    """Saves a checkpoint of random weights that bfloat16 holds exactly, and gives it back in float32."""
    torch.manual_seed(0)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        spread, mean = (0.3, 1.0) if "norm" in name else (0.2, 0.0)
        parameter.data.normal_(mean, spread)
    model.bfloat16().save_pretrained(folder)
    # Loaded anew, because a cast to bfloat16 and back also rounds the frequencies of the rotary embedding.
    return load(folder)
