"""Quantized checkpoints: a pack is that of the weights they stand for, and exact where a codec of ours holds them."""

import json

import encoded
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krasis.convert.encodings import compressed_tensors, fp8_block, mxfp4
from krasis.models.weight import Source
from krasis.pack.reader import Pack
from krasis.runtime.backend import PackedMatrix
from krasis.runtime.dequantize import dequantize

EXPERT = "layers.2.experts"


@pytest.fixture(scope="module")
def plain(demo):
    """(config, tensors) of the bundled checkpoint."""
    return encoded.read(demo)


@pytest.fixture(scope="module")
def mxfp4_source(example):
    return encoded.read(example("gpt_oss"))


@pytest.fixture
def same_pack(convert, tmp_path):
    """Expect a checkpoint's pack to have the bytes and errors of the pack of another."""

    def run(hub, other, **options):
        first, second = (
            json.loads((convert(folder, tmp_path / name, **options) / "manifest.json").read_text())
            for folder, name in ((hub, "pack"), (other, "other"))
        )
        assert first["files"] == second["files"]
        assert first["errors"] == second["errors"]

    return run


def matrix(pack, segment, name, record=0, layout="cpu"):
    """A matrix of a pack, dequantized."""
    spec = next(tensor for tensor in pack.segment(segment, layout).tensors if tensor.name == name)
    arrays = pack.arrays(segment, layout, record)
    return dequantize(PackedMatrix(spec, layout, *(arrays.get((name, part)) for part in ("codes", "scales", "values"))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fp8_blocks_become_the_weights_they_stand_for(dtype, plain, same_pack, tmp_path):
    config, tensors = plain
    fp8, decoded = dict(tensors), dict(tensors)
    for name in filter(encoded.linear, tensors):
        codes, scales = encoded.to_fp8(tensors[name], dtype)
        fp8 |= {name: codes, f"{name}_scale_inv": scales}
        decoded[name] = encoded.from_fp8(codes, scales)
    hub = encoded.write(tmp_path / "hub", config, fp8, encoded.FP8)
    same_pack(hub, encoded.write(tmp_path / "plain", config, decoded), expert_bits=8, group_size=64)


def compress(tensors, group_size, dtype=torch.bfloat16, width=torch.int64):
    """(tensors as compressed INT4, name -> the weights they stand for); 0 is a scale a row."""
    found, decoded = dict(tensors), dict(tensors)
    for name in filter(encoded.linear, tensors):
        n, k = tensors[name].shape
        if k % (group_size or k):
            continue
        numbers, scales = encoded.to_int4(tensors[name], group_size or k, dtype)
        del found[name]
        found |= {f"{name}_packed": encoded.packed(numbers), f"{name}_scale": scales}
        found[f"{name}_shape"] = torch.tensor([n, k], dtype=width)
        decoded[name] = encoded.from_int4(numbers, scales)
    return found, decoded


@pytest.mark.parametrize(("stored", "group_size"), [(32, 32), (128, 128), (128, 32), (0, 32)])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_int4_is_kept_bit_for_bit(stored, group_size, bits, plain, convert, tmp_path):
    config, tensors = plain
    found, decoded = compress(tensors, stored)
    strategy = {"group_size": stored} if stored else {"strategy": "channel", "group_size": None}
    hub = encoded.write(tmp_path / "hub", config, found, encoded.compressed(**strategy))
    pack = Pack(convert(hub, tmp_path / "pack", expert_bits=bits, group_size=group_size))
    prefix = "model.layers.2."
    gate, up, down = (decoded[f"{prefix}mlp.experts.5.{part}_proj.weight"] for part in ("gate", "up", "down"))
    exact = {"w13": torch.cat((gate, up))} | ({"w2": down} if stored != 128 else {})
    for name, weight in exact.items():
        for layout in ("cpu", "marlin"):
            assert torch.equal(matrix(pack, EXPERT, name, 5, layout), weight)
        assert not any(pack.manifest.errors[f"{EXPERT}.{name}"])
    for key in "qkv":
        weight = decoded[f"{prefix}self_attn.{key}_proj.weight"]
        assert torch.equal(matrix(pack, "layers.2.dense", key), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scales_finer_than_ours_are_quantized_again(dtype, plain, same_pack, tmp_path):
    config, tensors = plain
    found, decoded = compress(tensors, 32, dtype, torch.int32)
    hub = encoded.write(tmp_path / "hub", config, found, encoded.compressed(actorder="static", observer="mse"))
    same_pack(hub, encoded.write(tmp_path / "plain", config, decoded), expert_bits=8, group_size=32)


def test_compressed_int4_in_smaller_groups_than_asked_is_quantized_again(plain, same_pack, tmp_path):
    config, tensors = plain
    found, decoded = compress(tensors, 32)
    hub = encoded.write(tmp_path / "hub", config, found, encoded.compressed())
    same_pack(hub, encoded.write(tmp_path / "plain", config, decoded), expert_bits=8, group_size=128)


def test_a_checkpoint_with_its_experts_alone_compressed(plain, convert, tmp_path):
    config, tensors = plain
    experts = {name: tensor for name, tensor in tensors.items() if ".experts." in name}
    found, decoded = compress(experts, 32)
    rest = {name: tensor for name, tensor in tensors.items() if name not in experts}
    hub = encoded.write(tmp_path / "hub", config, rest | found, encoded.compressed())
    pack = Pack(convert(hub, tmp_path / "pack", group_size=32, layouts=("cpu",)))
    weight = decoded["model.layers.2.mlp.experts.0.down_proj.weight"]
    assert torch.equal(matrix(pack, EXPERT, "w2"), weight)
    assert all(pack.manifest.errors["layers.2.dense.q"])


def unpacked(tensors):
    """gpt-oss without quantization: experts as [input, output]."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        whole = name.removesuffix("_blocks")
        values = encoded.from_mxfp4(found.pop(name), found.pop(f"{whole}_scales"))
        found[whole] = values.transpose(1, 2)
    return found


WAYS = {
    "kept": ({}, "mxfp4", 32),
    "8 bits": ({"expert_bits": 8}, "int8", 32),
    "8 bits by name": ({"expert_bits": 8, "expert_codec": "int8", "group_size": 64}, "int8", 32),
    "kept by name": ({"expert_codec": "mxfp4", "group_size": 64}, "mxfp4", 32),
}


@pytest.mark.parametrize("way", WAYS)
def test_mxfp4_is_kept_bit_for_bit(way, example, mxfp4_source, convert, tmp_path):
    options, codec, group_size = WAYS[way]
    pack = Pack(convert(example("gpt_oss"), tmp_path / "pack", **options))
    values = unpacked(mxfp4_source[1])
    prefix = "model.layers.2.mlp.experts."
    for record in (0, 7):
        gate_up, down = (values[f"{prefix}{part}_proj"][record].T for part in ("gate_up", "down"))
        for name, weight in (("w13", torch.cat((gate_up[::2], gate_up[1::2]))), ("w2", down)):
            for layout in ("cpu", "marlin"):
                assert torch.equal(matrix(pack, EXPERT, name, record, layout), weight)
    specs = pack.segment(EXPERT, "cpu").tensors
    assert {(spec.codec, spec.group_size) for spec in specs if spec.quantized} == {(codec, group_size)}
    assert not any(error for name, found in pack.manifest.errors.items() if "experts" in name for error in found)


@pytest.mark.parametrize("options", [{"expert_codec": "int4", "group_size": 64}, {"expert_bits": 16}], ids=str)
def test_mxfp4_becomes_the_weights_it_stands_for(options, example, mxfp4_source, same_pack, tmp_path):
    config, tensors = mxfp4_source
    same_pack(example("gpt_oss"), encoded.write(tmp_path / "plain", config, unpacked(tensors)), **options)


def test_floats_that_are_mxfp4_come_back_as_they_were(mxfp4_source, convert, tmp_path):
    config, tensors = mxfp4_source
    hub = encoded.write(tmp_path / "plain", config, unpacked(tensors))
    pack = Pack(convert(hub, tmp_path / "pack", expert_codec="mxfp4"))
    assert {spec.codec for spec in pack.segment(EXPERT, "cpu").tensors if spec.quantized} == {"mxfp4"}
    assert not any(error for name, found in pack.manifest.errors.items() if "experts" in name for error in found)


def test_floats_become_mxfp4_where_asked(demo_pack):
    pack = Pack(demo_pack(expert_codec="mxfp4"))
    assert {(spec.codec, spec.group_size) for spec in pack.segment(EXPERT, "cpu").tensors} == {("mxfp4", 32)}
    assert 0.05 < max(pack.manifest.errors[f"{EXPERT}.w13"]) < 0.15


sizes = st.integers(1, 300)
seeds = st.integers(0, 1 << 30)


@settings(max_examples=40)
@given(n=sizes, k=sizes, seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_fp8_decodes_like_the_loop(n, k, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    codes, scales = encoded.to_fp8(torch.randn(n, k, generator=generator), dtype)
    found = fp8_block.decode(codes, scales)
    # The corners, and both sides of a border between blocks.
    corners = {(0, 0), (n - 1, k - 1), (min(n, 128) - 1, min(k, 128) - 1), (min(n - 1, 128), min(k - 1, 128))}
    for row, column in corners:
        assert found[row, column] == codes[row, column].float() * scales[row // 128, column // 128].float()
    assert torch.equal(found, encoded.from_fp8(codes, scales))


@settings(max_examples=40)
@given(n=st.integers(1, 40), words=st.integers(1, 40), seed=seeds)
def test_packed_words_decode_like_bits(n, words, seed):
    numbers = torch.randint(-8, 8, (n, 8 * words), generator=torch.Generator().manual_seed(seed))
    found = compressed_tensors.decode(encoded.packed(numbers))
    assert found.dtype == torch.uint8
    assert torch.equal(found.long() - 8, numbers)


def test_the_first_number_of_a_word_is_in_its_lowest_bits():
    words = torch.tensor([[0x76543210, -1]], dtype=torch.int32)
    assert compressed_tensors.decode(words).tolist() == [[*range(8), *[15] * 8]]


@settings(max_examples=40)
@given(n=st.integers(1, 40), groups=st.integers(1, 8), seed=seeds)
def test_mxfp4_decodes_like_the_table(n, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (n, groups, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(1, 252, (n, groups), generator=generator, dtype=torch.uint8)
    parts = {"x_blocks": blocks, "x_scales": scales}
    found = mxfp4.Mxfp4().read(lambda name, index: parts[name], Source("x"))
    assert torch.equal(found.values(), encoded.from_mxfp4(blocks, scales))
