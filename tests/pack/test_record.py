"""Where sections lie, against numbers worked out by hand and the rules of formats/pack-v1.md."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis import quant
from krasis.layout.marlin import padded_shape
from krasis.pack.record import TensorSpec, record_bytes, sections

W13 = TensorSpec("w13", "int4", (96, 40), (128, 64), 32, 2)
W2 = TensorSpec("w2", "int8", (40, 48), (128, 64), 64)


def found(layout):
    return [(s.tensor, s.part, s.dtype, s.shape, s.offset, s.bytes) for s in sections((W13, W2), layout)]


def test_the_worked_record_in_marlin():
    assert found("marlin") == [
        ("w13", "codes", torch.int32, (4, 256), 0, 4096),
        ("w13", "scales", torch.bfloat16, (2, 128), 4096, 512),
        ("w2", "codes", torch.int32, (4, 512), 4608, 8192),
        ("w2", "scales", torch.bfloat16, (1, 128), 12800, 256),
    ]
    assert record_bytes((W13, W2), "marlin") == 16384


def test_the_worked_record_in_cpu():
    assert found("cpu") == [
        ("w13", "codes", torch.uint8, (8, 512), 0, 4096),
        ("w13", "scales", torch.bfloat16, (8, 2, 16), 4096, 512),
        ("w2", "codes", torch.uint8, (8, 1024), 4608, 8192),
        ("w2", "scales", torch.bfloat16, (8, 1, 16), 12800, 256),
    ]
    assert record_bytes((W13, W2), "cpu") == 16384


def test_small_sections_start_on_256_bytes_and_a_full_record_is_not_filled():
    tiny, odd = TensorSpec("a", "f32", (1,), (1,)), TensorSpec("b", "bf16", (3, 43), (3, 43))
    assert [s.offset for s in sections((tiny, odd, tiny), "plain")] == [0, 256, 768]
    assert record_bytes((tiny, odd, tiny), "plain") == 4096
    full = TensorSpec("c", "f32", (1024,), (1024,))
    assert record_bytes((full,), "plain") == 4096
    assert record_bytes((full, tiny), "plain") == 8192


def test_mxfp4_scales_are_bytes():
    spec = TensorSpec("w", "mxfp4", (128, 64), (128, 64), 32)
    assert [(s.part, s.dtype, s.shape) for s in sections((spec,), "marlin")][1] == ("scales", torch.uint8, (2, 128))
    assert [(s.part, s.dtype, s.shape) for s in sections((spec,), "cpu")][1] == ("scales", torch.uint8, (8, 2, 16))


def test_vectors_may_be_padded_like_the_rows_of_a_matrix():
    assert sections((TensorSpec("b", "f32", (96,), (128,), parts=2),), "plain")[0].shape == (128,)


names = st.integers(0, 9).map("t{}".format)
plain = st.builds(
    lambda codec, shape: TensorSpec("t", codec, shape, shape),
    st.sampled_from(["bf16", "f32"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
)


@st.composite
def quantized(draw):
    codec = draw(st.sampled_from(["int4", "int8", "mxfp4"]))
    n, k, g = draw(st.integers(1, 300)), draw(st.integers(1, 300)), draw(st.sampled_from(quant.get(codec).GROUP_SIZES))
    padded_k, padded_n = padded_shape(k, n, g)
    return TensorSpec("t", codec, (n, k), (padded_n, padded_k), g)


@given(st.lists(plain | quantized(), min_size=1, max_size=5).map(tuple), st.sampled_from(["marlin", "cpu"]))
def test_sections_are_aligned_and_follow_each_other(tensors, layout):
    placed = sections(tensors, layout)
    assert placed[0].offset == 0
    assert all(section.offset % 256 == 0 for section in placed)
    assert all(0 <= b.offset - (a.offset + a.bytes) < 256 for a, b in pairwise(placed))
    end = placed[-1].offset + placed[-1].bytes
    assert 0 <= record_bytes(tensors, layout) - end < 4096
    assert record_bytes(tensors, layout) % 4096 == 0
    bits = {"int4": 4, "int8": 8, "mxfp4": 4, "bf16": 16, "f32": 32}
    scale_bytes = {"int4": 2, "int8": 2, "mxfp4": 1}
    codes = sum(prod(t.padded_shape) * bits[t.codec] // 8 for t in tensors)
    scales = sum(prod(t.padded_shape) // t.group_size * scale_bytes[t.codec] for t in tensors if t.quantized)
    assert sum(section.bytes for section in placed) == codes + scales


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (TensorSpec("w", "int5", (128, 64), (128, 64), 32), "unknown codec 'int5'"),
        (TensorSpec("w", "int4", (128, 64), (128, 64), 0), "needs a group size"),
        (TensorSpec("w", "int4", (128, 64), (128, 64), 0), "size of 32 or 64 or 128 and two dimensions"),
        (TensorSpec("w", "mxfp4", (128, 64), (128, 64), 64), "mxfp4 needs a group size of 32 and two dimensions"),
        (TensorSpec("w", "int4", (2, 128, 64), (2, 128, 64), 32), "two dimensions"),
        (TensorSpec("w", "int4", (128, 65), (128, 64), 32), "can't be padded"),
        (TensorSpec("w", "int4", (128, 64), (128, 96), 32), "can't be padded"),
        (TensorSpec("w", "int4", (127, 64), (128, 64), 32, 2), "can't be padded"),
        (TensorSpec("w", "int4", (128, 64), (256, 64), 32), "can't be padded"),
        (TensorSpec("w", "int4", (128, 64), (128, 192), 32), "can't be padded"),
        (TensorSpec("w", "bf16", (4,), (4,), 32), "takes no group size"),
        (TensorSpec("w", "bf16", (4, 4), (4, 4), 0, 2), "takes no group size"),
        (TensorSpec("w", "bf16", (4, 4), (8, 4)), "takes no group size"),
        (TensorSpec("w", "bf16", (4,), (4, 1)), "can't be padded"),
        (TensorSpec("w", "bf16", (4,), (3,)), "can't be padded"),
        (TensorSpec("w", "bf16", (4,), (132,)), "can't be padded"),
        (TensorSpec("w", "bf16", (3,), (4,), 0, 2), "can't be padded"),
        (TensorSpec("w", "bf16", (4,), (5,), 0, 2), "can't be padded"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(spec, fault):
    with pytest.raises(ValueError, match=fault):
        sections((spec,), "cpu")


def test_rows_may_be_padded_for_the_matrix_they_feed():
    wide = TensorSpec("w13", "int4", (2 * 65, 128), (2 * 128, 128), 32, 2)
    assert sections((wide,), "cpu")[0].bytes == 256 * 128 // 2
