"""Sums over a pack, against the arrays it really holds."""

import math

import pytest

from krasis import quant
from krasis.pack import summary
from krasis.pack.manifest import Segment
from krasis.pack.reader import Pack
from krasis.pack.record import TensorSpec


@pytest.fixture(scope="module")
def packs(pack_of):
    return [Pack(pack_of("gpt_oss")), Pack(pack_of("deepseek_v2", group_size=32)), Pack(pack_of("qwen3_moe"))]


def segments(pack):
    return [segment for _, segment in pack.manifest.segments()]


def test_sizes_add_up(packs):
    for pack in packs:
        sizes = summary.sizes(segments(pack))
        assert sum(sizes.values()) == pack.manifest.weight_bytes
        assert list(sizes)[:3] == ["base", "head", "layers"]
        experts = [segment.bytes for segment in segments(pack) if segment.name.endswith(".experts")]
        assert sizes["experts"] == sum(experts)


def test_padding_is_what_no_weight_needs(packs):
    for pack in packs:
        needed = 0
        for segment in segments(pack):
            for tensor in segment.tensors:
                bits = math.prod(tensor.shape) * quant.get(tensor.codec).BITS
                groups = -(-tensor.shape[-1] // tensor.group_size) * tensor.shape[0] if tensor.quantized else 0
                scale = 1 if tensor.codec == "mxfp4" else 2
                needed += segment.count * (bits // 8 + groups * scale)
        assert summary.padding_bytes(segments(pack)) == pack.manifest.weight_bytes - needed > 0


def test_matrices_have_the_bytes_of_their_arrays(packs):
    for pack in packs:
        found = summary.matrices(segments(pack), pack.manifest.errors, {})
        held = 0
        for segment in segments(pack):
            quantized = {tensor.name for tensor in segment.tensors if tensor.quantized}
            arrays = pack.arrays(segment.name, segment.layout)
            held += segment.count * sum(a.nbytes for (tensor, _), a in arrays.items() if tensor in quantized)
        assert sum(matrix["bytes"] for matrix in found) == held
        once = {s.name: s.count * sum(t.quantized for t in s.tensors) for s in segments(pack)}
        assert sum(matrix["count"] for matrix in found) == sum(once.values())


W = TensorSpec("w", "int8", (64, 128), (64, 128), 128)


def described(*names):
    return [Segment(name, "cpu", 0, (W,), ("0" * 64,)) for name in names]


@pytest.mark.parametrize(
    ("figures", "mean", "worst"),
    [((), None, None), ((0.0, 0.0), 0, 0), ((3e-2, 4e-2), 12.5e-4**0.5, 4e-2), ((1e300, 1e300), 1e300, 1e300)],
)
def test_errors_are_summed_up(figures, mean, worst):
    names = [f"layers.{i}.dense" for i in range(max(len(figures), 1))]
    errors = {f"{name}.w": (figure,) for name, figure in zip(names, figures, strict=False)}
    (found,) = summary.matrices(described(*names), errors, {})
    assert found["rel_rms_error"] == (mean if mean is None else pytest.approx(mean))
    assert found["worst_rel_rms_error"] == worst


def test_segments_are_called_by_what_they_hold():
    sizes = summary.sizes(described("base", "layers.0", "layers.1", "layers.1.experts", "7"))
    assert {name: size // described("x")[0].bytes for name, size in sizes.items()} == {
        "base": 1,
        "layers": 2,
        "experts": 1,
        "7": 1,
    }
