"""A checkpoint of a real shape with made-up weights: python bench/synthetic_checkpoint.py CONFIG.json FOLDER

Everything has the dimensions of the configuration but what the options cut: layers, experts, vocabulary. Tensors are
named and sharded as on the hub. Weights are normal with a spread of 1/sqrt(columns): windows of a few million numbers
that are drawn once, so that memory stays small and the disk sets the speed.
"""

import argparse
import json
import math
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from krasis import models

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
CHOSEN = ("num_experts_per_tok", "experts_per_token")
ENCODINGS = {
    "bf16": None,
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
}
SHARD_BYTES = 4 << 30
NUMBERS = 1 << 22
MXFP4_BLOCK, FP8_BLOCK = 32, 128


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `kind` tells what its numbers are, `spread` how large."""

    name: str
    kind: str
    shape: tuple[int, ...]
    spread: float = 0.0

    @property
    def dtype(self) -> str:
        """In the words of safetensors."""
        return {"normal": "BF16", "norm": "BF16", "fp8": "F8_E4M3", "fp8 scales": "F32"}.get(self.kind, "U8")

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * {"BF16": 2, "F32": 4}.get(self.dtype, 1)


class Numbers:
    """Bytes of each kind and spread, drawn once."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._normals = torch.from_numpy(self._rng.standard_normal(NUMBERS, dtype=np.float32))
        self._bytes: dict[tuple[str, float], memoryview] = {}

    def of(self, tensor: Tensor) -> memoryview:
        key = tensor.kind, tensor.spread
        if key not in self._bytes:
            self._bytes[key] = memoryview(self._draw(tensor).view(torch.uint8).numpy())
        return self._bytes[key]

    def _draw(self, tensor: Tensor) -> torch.Tensor:
        if tensor.kind == "fp8":
            return (self._normals * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
        if tensor.kind == "fp8 scales":
            return torch.from_numpy(self._rng.uniform(0.8, 1.2, NUMBERS).astype(np.float32)) * (tensor.spread / 100)
        if tensor.kind == "mxfp4 blocks":
            return torch.from_numpy(self._rng.integers(256, size=NUMBERS, dtype=np.uint8))
        if tensor.kind == "mxfp4 scales":
            return torch.from_numpy(self._rng.integers(118, 122, size=NUMBERS, dtype=np.uint8))
        return (self._normals * tensor.spread + (tensor.kind == "norm")).bfloat16()


def cut(config: dict, **changes: object) -> dict:
    """A configuration with fewer layers, experts or tokens."""
    found = config | {key: value for key, value in changes.items() if value is not None}
    if found.get("layer_types"):
        found["layer_types"] = found["layer_types"][: found["num_hidden_layers"]]
    return found


def cut_experts(config: dict, experts: int | None) -> dict:
    """The changes to a configuration that leave so many experts, and tokens to choose at most these."""
    if experts is None:
        return {}
    changes = {key: experts for key in EXPERTS if key in config}
    return changes | {key: min(config[key], experts) for key in CHOSEN if key in config}


def shapes(files: Iterator) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Tensor name -> (shape, whether of stacked experts) of a plain checkpoint with just the sources of `files`."""
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


def _whole(source: models.weight.Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The least shape of a tensor in which the source finds its rows."""
    rows, *rest = reversed(shape) if source.turned else shape
    last = source.first + rows // source.runs if source.last is None else source.last
    whole = (source.runs * last, *rest)
    whole = tuple(reversed(whole)) if source.columns else whole
    return whole if source.index is None else (source.index + 1, *whole)


def tensors(config: dict) -> Iterator[Tensor]:
    """Every tensor of a checkpoint with this configuration, in the encoding it names."""
    family = models.get(config["model_type"])
    spec = family.parse_config({key: value for key, value in config.items() if key != "quantization_config"})
    method = (config.get("quantization_config") or {}).get("quant_method")
    for name, (shape, stacked) in shapes(family.files(spec)).items():
        spread = shape[-1] ** -0.5
        if stacked and method == "mxfp4":
            count, k, n = shape
            yield Tensor(f"{name}_blocks", "mxfp4 blocks", (count, n, k // MXFP4_BLOCK, MXFP4_BLOCK // 2))
            yield Tensor(f"{name}_scales", "mxfp4 scales", (count, n, k // MXFP4_BLOCK))
        elif name.endswith("_proj.weight") and method == "fp8":
            yield Tensor(name, "fp8", shape)
            blocks = tuple(-(-size // FP8_BLOCK) for size in shape)
            yield Tensor(f"{name}_scale_inv", "fp8 scales", blocks, spread)
        else:
            yield Tensor(name, "norm" if name.endswith("norm.weight") else "normal", shape, spread)


def shards(found: Iterator[Tensor], most: int) -> list[list[Tensor]]:
    """Tensors in order, as many to a shard as fit in `most` bytes."""
    parts: list[list[Tensor]] = [[]]
    size = 0
    for tensor in found:
        if parts[-1] and size + tensor.bytes > most:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.bytes
    return parts


def write(config: dict, folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES, jobs: int = 2) -> int:
    """Makes the folder: config.json, shards, and their index where there are several. Returns the bytes of weights."""
    parts = shards(tensors(config), shard_bytes)
    count = len(parts)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = names if count > 1 else ["model.safetensors"]
    folder.mkdir(parents=True)
    numbers, total = Numbers(seed), sum(tensor.bytes for part in parts for tensor in part)
    for part in parts:
        for tensor in part:
            numbers.of(tensor)
    with ThreadPoolExecutor(jobs) as pool:
        write_one = partial(write_shard, numbers=numbers, seed=seed)
        list(pool.map(write_one, (folder / name for name in names), parts))
    if count > 1:
        weight_map = {tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return total


def write_shard(path: Path, part: list[Tensor], numbers: Numbers, seed: int) -> None:
    """One safetensors file: the length of the header, the header, the tensors one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in part:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (end, end + tensor.bytes),
        }
        end += tensor.bytes
    raw = msgspec.json.encode(header)
    raw += b" " * (-len(raw) % 8)
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 8 + len(raw) + end)
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in part:
            rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            for window in windows(numbers.of(tensor), tensor, rng):
                file.write(window)
        os.fsync(file.fileno())


def windows(source: memoryview, tensor: Tensor, rng: np.random.Generator) -> Iterator[memoryview]:
    """Pieces of the drawn bytes, from random numbers on, that make a tensor."""
    item = tensor.bytes // math.prod(tensor.shape)
    left = tensor.bytes
    while left:
        start = int(rng.integers(NUMBERS)) * item
        piece = source[start : start + left]
        left -= len(piece)
        yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="instead of num_hidden_layers")
    parser.add_argument("--experts", type=int, help="instead of the number of routed experts")
    parser.add_argument("--vocab", type=int, help="instead of vocab_size")
    parser.add_argument(
        "--encoding", choices=ENCODINGS, help="mxfp4 is gpt-oss' alone; what config.json says if missing"
    )
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    config = json.loads(options.config.read_text(encoding="utf-8"))
    changes = {"num_hidden_layers": options.layers, "vocab_size": options.vocab} | cut_experts(config, options.experts)
    config = encoded(cut(config, **changes), options.encoding)
    total = write(config, options.folder, options.seed, options.shard_bytes, options.jobs)
    print(f"{options.folder}: {total / 1e9:.2f} GB")


def encoded(config: dict, encoding: str | None) -> dict:
    """A configuration that names another encoding, the same where None."""
    if encoding is None:
        return config
    bare = {key: value for key, value in config.items() if key != "quantization_config"}
    return bare if ENCODINGS[encoding] is None else bare | {"quantization_config": ENCODINGS[encoding]}


if __name__ == "__main__":
    main()
