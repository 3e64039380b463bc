"""Padding is exact on the real dimensions of the models krasis is for, and on odd ones.

One layer of each kind and few experts of every real configuration are converted. Each matrix and bias of the pack must
be, once its padding is dropped, what quantizing the unpadded weights gives, in both layouts; and a native product with
the padded matrix must be the same in both.
"""

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from krasis import models, quant
from krasis.convert.assign import Choice, plan_group
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.encode import encode_plain, encode_quantized, values
from krasis.convert.encodings.stored import Coded
from krasis.models.conform import read_spec
from krasis.models.weight import Group, Source, Weight
from krasis.native.quantize import Target
from krasis.pack.reader import Pack
from krasis.pack.record import sections
from krasis.runtime.backend import PackedMatrix, strip_parts
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.dequantize import dequantize

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import synthetic_checkpoint

CONFIGS = sorted((Path(__file__).parents[1] / "models/configs").glob("*.json"))
LAYOUTS = ("cpu", "marlin")
EXPERTS, VOCAB = 2, 192
LAYERS = {"deepseek_v2": 2, "gpt_oss": 1, "qwen3_moe": 1, "qwen3_next": 4}  # up to the first of each kind


def small(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    changes = {"num_hidden_layers": LAYERS[config["model_type"]], "vocab_size": VOCAB}
    changes |= synthetic_checkpoint.cut_experts(config, EXPERTS)
    return synthetic_checkpoint.cut(config, **changes)


WAYS = {
    "int4 g128": {"expert_codec": "int4"},
    "int8 g64": {"expert_bits": 8, "group_size": 64},
    "kept g32": {"group_size": 32},
    "w2 g32": {"expert_codec": "int4", "w2_group_size": 32},
    "w2 int8": {"expert_codec": "int4", "w2_codec": "int8"},
}
# Groups of 64 fit where 128 does not, and only one model keeps its experts.
ONLY = {
    "int8 g64": ("deepseek-v2-lite", "gpt-oss-120b"),
    "kept g32": ("gpt-oss-120b",),
    "w2 g32": ("deepseek-v2-lite",),
    "w2 int8": ("gpt-oss-120b",),
}
CASES = [(path, way) for path in CONFIGS for way in WAYS if path.stem in ONLY.get(way, path.stem)]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Configuration -> a checkpoint of its dimensions."""

    @functools.cache
    def make(path):
        folder = tmp_path_factory.mktemp("real") / "hub"
        synthetic_checkpoint.write(small(path), folder)
        return folder

    return make


def round_trip(weight, spec):
    """Quantized and dequantized along the last dimension, filled with zeros to whole groups."""
    codec, k = quant.get(spec.codec), weight.shape[-1]
    rows = functional.pad(weight.float(), (0, -k % spec.group_size))
    return codec.dequantize(codec.quantize(rows, spec.group_size))[:, :k]


def packed(spec, layout, arrays):
    return PackedMatrix(spec, layout, *(arrays.get((spec.name, part)) for part in ("codes", "scales", "values")))


def check_record(specs, weights, loaded, arrays_of):
    """Every tensor of a record, in every layout, against the sources it was made of."""
    for spec, weight in zip(specs, weights, strict=True):
        logical = torch.cat([values(source) for source in loaded[weight.name]])
        for layout, arrays in arrays_of.items():
            if not spec.quantized:
                kept = arrays[spec.name, "values"]
                assert torch.equal(strip_parts(kept, spec) if kept.ndim == 1 else kept, logical)
                continue
            found = dequantize(packed(spec, layout, arrays))
            # What is MXFP4 in the checkpoint stays as it is.
            exact = any(isinstance(source, Coded) for source in loaded[weight.name]) and spec.group_size == 32
            assert torch.equal(found, logical.float() if exact else round_trip(logical, spec)), (spec, layout)


@pytest.mark.parametrize(("path", "way"), CASES, ids=[f"{path.stem}, {way}" for path, way in CASES])
def test_real_shapes(path, way, real, convert, tmp_path):
    pack = Pack(convert(real(path), tmp_path / "pack", **WAYS[way]))
    checkpoint, spec, backend = Checkpoint(real(path)), read_spec(pack), CpuBackend(2)
    for _, groups in models.get(json.loads(path.read_text(encoding="utf-8"))["model_type"]).files(spec):
        for group in groups:
            layouts = pack.layouts_of[group.name]
            specs = pack.segment(group.name, layouts[0]).tensors
            record, weights = len(group.records) - 1, group.records[-1]
            arrays_of = {layout: pack.arrays(group.name, layout, record) for layout in layouts}
            loaded = {w.name: [checkpoint.load(source) for source in w.sources] for w in weights}
            check_record(specs, weights, loaded, arrays_of)
            for tensor in specs:
                if tensor.quantized:
                    check_products(tensor, arrays_of, backend)


def check_products(spec, arrays_of, backend):
    x = torch.randn(2, spec.shape[1], generator=torch.Generator().manual_seed(0))
    first, second = (backend.linear(packed(spec, layout, arrays))(x) for layout, arrays in arrays_of.items())
    assert first.shape == (2, spec.shape[0])
    assert torch.equal(first, second)
    exact = x @ dequantize(packed(spec, "cpu", arrays_of["cpu"])).T
    # Activations are rounded to 8 bits: 0.3 to 0.6% of their root mean square.
    assert (first - exact).norm() < 0.01 * exact.norm()


@settings(max_examples=60)
@given(
    hidden=st.integers(1, 200),
    size=st.integers(1, 200),
    codec=st.sampled_from(["int4", "int8", "mxfp4"]),
    group_size=st.sampled_from([32, 64, 128]),
    w2=st.one_of(st.none(), st.builds(Choice, st.sampled_from(["int4", "int8"]), st.sampled_from([32, 64, 128]))),
    biased=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_odd_shapes(hidden, size, codec, group_size, w2, biased, seed):
    names = ["gate", "up", "down", "gate_bias", "up_bias", "down_bias"]
    gate, up, down, gate_bias, up_bias, down_bias = map(Source, names)
    weights = (
        Weight("w13", (gate, up), (size, hidden), feeds="w2"),
        Weight("w2", (down,), (hidden, size)),
        Weight("b13", (gate_bias, up_bias), (size,), bias_of="w13"),
        Weight("b2", (down_bias,), (hidden,), bias_of="w2"),
    )
    weights = weights if biased else weights[:2]
    group = Group("layers.0.experts", "expert", (weights,))
    choice = Choice(codec, 32 if codec == "mxfp4" else group_size, w2)
    plans = plan_group(group, choice, LAYOUTS, lambda source: torch.float32)
    generator = torch.Generator().manual_seed(seed)
    loaded = {w.name: [torch.randn(w.shape, generator=generator) for _ in w.sources] for w in weights}
    arrays_of = {plan.layout: zeros(plan) for plan in plans}
    for spec in plans[0].tensors:
        rows = range(spec.padded_shape[0])
        if spec.quantized:
            targets = [
                Target(layout, *(found[spec.name, part] for part in ("codes", "scales")))
                for layout, found in arrays_of.items()
            ]
            encode_quantized(spec, loaded[spec.name], targets, rows)
        else:
            for found in arrays_of.values():
                encode_plain(spec, loaded[spec.name], found[spec.name, "values"], rows)
    check_record(plans[0].tensors, weights, loaded, arrays_of)
    check_fit({spec.name: spec for spec in plans[0].tensors}, arrays_of)


def zeros(plan):
    """The arrays of a record as a file in the making has them."""
    return {(s.tensor, s.part): torch.zeros(s.shape, dtype=s.dtype) for s in sections(plan.tensors, plan.layout)}


def check_fit(specs, arrays_of):
    """Rows of w13 fill the padded input of w2 part by part, biases fill the padded rows, and pads are zero."""
    assert specs["w13"].padded_shape[0] // 2 >= specs["w2"].padded_shape[1]
    for bias, matrix in (("b13", "w13"), ("b2", "w2")):
        if bias in specs:
            spec = specs[bias]
            assert spec.padded_shape == specs[matrix].padded_shape[:1]
            for arrays in arrays_of.values():
                parts = arrays[bias, "values"].view(spec.parts, -1)
                assert not parts[:, spec.shape[0] // spec.parts :].any()
