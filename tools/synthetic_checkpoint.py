"""A checkpoint of a real shape with made-up weights: python tools/synthetic_checkpoint.py CONFIG.json FOLDER

Everything has the dimensions of the configuration but what the options cut: layers, experts, vocabulary. Weights are
normal with a spread of 1/sqrt(columns) in bfloat16; experts are MXFP4 where the configuration says so.
"""

import argparse
import json
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from krasis import models

BLOCK = 32


def cut(config, **changes):
    """A configuration with fewer layers, experts or tokens."""
    found = config | {key: value for key, value in changes.items() if value is not None}
    if "layer_types" in found:
        found["layer_types"] = found["layer_types"][: found["num_hidden_layers"]]
    return found


def shapes(files):
    """Tensor name -> (shape, whether an expert's) of an unquantized checkpoint that has just the sources of `files`."""
    found = {}
    for _, groups in files:
        for group in groups:
            for record in group.records:
                for weight in record:
                    for source in weight.sources:
                        shape, stacked = found.get(source.name, ((), False))
                        wider = _whole(source, weight.shape)
                        shape = tuple(map(max, shape, wider)) if shape else wider
                        found[source.name] = shape, stacked or (source.index is not None and source.columns)
    return found


def _whole(source, shape):
    """The least shape of a tensor in which the source finds its rows."""
    rows, *rest = reversed(shape) if source.turned else shape
    last = source.first + rows // source.runs if source.last is None else source.last
    whole = (source.runs * last, *rest)
    whole = tuple(reversed(whole)) if source.columns else whole
    return whole if source.index is None else (source.index + 1, *whole)


def tensors(files, mxfp4, generator):
    """The tensors of a checkpoint, one after the other."""
    for name, (shape, expert) in shapes(files).items():
        if expert and mxfp4:
            count, k, n = shape
            blocks = torch.randint(256, (count, n, k // BLOCK, BLOCK // 2), dtype=torch.uint8, generator=generator)
            scales = torch.randint(118, 122, (count, n, k // BLOCK), dtype=torch.uint8, generator=generator)
            yield from ((f"{name}_blocks", blocks), (f"{name}_scales", scales))
        else:
            spread = shape[-1] ** -0.5
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            yield name, torch.empty(shape).normal_(mean, spread, generator=generator).bfloat16()


def write(config, folder, seed=0):
    """Makes the folder with config.json and model.safetensors."""
    family = models.get(config["model_type"])
    spec = family.parse_config({key: value for key, value in config.items() if key != "quantization_config"})
    generator = torch.Generator().manual_seed(seed)
    mxfp4 = config.get("quantization_config", {}).get("quant_method") == "mxfp4"
    folder.mkdir(parents=True)
    save_file(dict(tensors(family.files(spec), mxfp4, generator)), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="instead of num_hidden_layers")
    parser.add_argument("--experts", type=int, help="instead of the number of routed experts")
    parser.add_argument("--vocab", type=int, help="instead of vocab_size")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = json.loads(options.config.read_text(encoding="utf-8"))
    changes = {"num_hidden_layers": options.layers, "vocab_size": options.vocab}
    changes |= {key: options.experts for key in EXPERTS if key in config}
    write(cut(config, **changes), options.folder, options.seed)


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

if __name__ == "__main__":
    main()
