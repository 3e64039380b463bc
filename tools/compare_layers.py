"""Where a family's forward leaves transformers: python tools/compare_layers.py CHECKPOINT [--tokens 100]

Converts the checkpoint without quantization, runs the same tokens through krasis' reference backend and transformers,
both in float32, and prints for every layer how far the hidden states after it are apart, relative to the largest:

- through: both models run from the first layer on, so an error shows in every layer after its own;
- alone: the layer is given transformers' input, so an error shows in its own layer only.

Exit code 1 if a layer or the logits differ by more than --tolerance, the first being named.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from krasis.convert.pipeline import Conversion
from krasis.errors import KrasisError
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime.engine import Engine
from krasis.runtime.plan import PREFILL_CHUNK
from krasis.runtime.reference import ReferenceBackend

import torch  # isort: skip
import transformers  # isort: skip


def load(folder):
    """transformers' model in float32."""
    config = transformers.AutoConfig.from_pretrained(folder)
    quantized = getattr(config, "quantization_config", None) or {}
    options = {}
    if quantized.get("quant_method") == "mxfp4":
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@torch.inference_mode()
def theirs(model, ids):
    """(inputs and outputs of every layer, logits), each [tokens, ...]."""
    inputs, outputs = [], []

    def note(module, args, kwargs, output):
        inputs.append((args[0] if args else kwargs["hidden_states"])[0])
        outputs.append((output[0] if isinstance(output, tuple) else output)[0])

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in model.model.layers]
    logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return inputs, [output.view(len(ids), -1) for output in outputs], logits


@torch.inference_mode()
def ours(engine, ids, inputs):
    """(hidden states after every layer, those after every layer given one of `inputs`, logits)."""
    model, through = engine.model, []
    model.observe = lambda layer, x: through.append(x)
    logits = engine.logits(engine.all_hidden(ids, engine.new_state()))
    angles, state = model.rope.angles(0, len(ids)), engine.new_state()
    alone = [sum(block.forward(x, None, angles, state)) for block, x in zip(model.blocks, inputs, strict=True)]
    return through, alone, logits


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compare(folder, tokens, tolerance):
    """Prints the table; the name of what differs first, None where nothing does."""
    model = load(folder)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (tokens,), generator=generator).tolist()
    inputs, outputs, expected = theirs(model, ids)
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(expert_bits=16, dense_bits=16, group_size=128, layouts=("cpu",))
        Conversion(folder, settings).run(Path(scratch) / "pack", Silent())
        engine = Engine(Pack(Path(scratch) / "pack"), ReferenceBackend(), context=tokens, kv="f32")
        through, alone, logits = ours(engine, ids, inputs)
    rows = [
        (f"layer {layer}", difference(through[layer], output), difference(alone[layer], output))
        for layer, output in enumerate(outputs)
    ]
    end = difference(logits, expected)
    print(f"{'':<10} {'through':>9} {'alone':>9}")
    for name, *figures in rows:
        print(f"{name:<10} {figures[0]:9.1e} {figures[1]:9.1e}")
    print(f"{'logits':<10} {end:9.1e}")
    wrong = [name for name, _, own in rows if not own <= tolerance]
    return wrong[0] if wrong else None if end <= tolerance else "logits"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=100, help="random tokens to run (100)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference that passes (1e-4)")
    options = parser.parse_args()
    if not 1 <= options.tokens <= PREFILL_CHUNK:
        parser.error(f"--tokens is {options.tokens}: expected 1 to {PREFILL_CHUNK}, which run at once")
    try:
        first = compare(options.checkpoint, options.tokens, options.tolerance)
    except KrasisError as error:
        sys.exit(f"error: {error}")
    if first is not None:
        sys.exit(f"first divergence: {first}")
    print("no divergence")


if __name__ == "__main__":
    main()
