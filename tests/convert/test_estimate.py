"""Estimates: of the right matrices at measured rates, and nothing read or written for them."""

import math

import pytest

from krasis.convert import estimate as estimating
from krasis.convert.estimate import estimate, rate
from krasis.convert.pipeline import Conversion
from krasis.pack.manifest import Settings
from krasis.pack.record import TensorSpec

SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"))


@pytest.fixture
def measured(monkeypatch):
    """Rates that are set, not measured; (codec, codec kept from the checkpoint) of each that was asked for."""
    asked = []

    def rate(spec, layouts, jobs, kept, guide):
        assert layouts == SETTINGS.layouts
        asked.append((spec.codec, kept))
        return jobs * (1e6 if spec.codec == "int8" else 5e5)

    monkeypatch.setattr(estimating, "rate", rate)
    monkeypatch.setattr(estimating, "hash_rate", lambda jobs: jobs * 1e9)
    return asked


def test_seconds_follow_from_rates_and_jobs(measured, demo):
    conversion = Conversion(demo, SETTINGS)
    found = {jobs: estimate(conversion, jobs) for jobs in (1, 4)}
    kinds = [(m["codec"], m["count"] * math.prod(m["shape"])) for m in conversion.summary()["matrices"]]
    weights = {codec: sum(count for of, count in kinds if of == codec) for codec in ("int4", "int8")}
    hashed = conversion.bytes + sum(path.stat().st_size for path in demo.glob("*.safetensors"))
    seconds = 2 * weights["int8"] / 1e6 + 2 * weights["int4"] / 5e5 + hashed / 1e9
    assert found[1]["seconds"] == pytest.approx(seconds)
    assert found[4]["seconds"] == pytest.approx(seconds / 4)
    largest = max(math.prod(matrix["shape"]) for matrix in conversion.summary()["matrices"])
    more = found[4]["memory_bytes"] - found[1]["memory_bytes"]
    assert more == 3 * largest * estimating.FLOAT_BYTES
    assert {(r["codec"], r["group_size"], r["bytes_per_s"]) for r in found[1]["rates"]} == {
        ("int8", 128, 1e6),
        ("int4", 128, 5e5),
    }


def test_what_is_kept_is_not_quantized(measured, example):
    kept = estimate(Conversion(example("gpt_oss"), SETTINGS), 1)
    decoded = estimate(Conversion(example("gpt_oss"), SETTINGS, "int4"), 1)
    assert kept["memory_bytes"] < decoded["memory_bytes"]
    assert sorted(set(measured), key=str) == [("int4", None), ("int8", None), ("mxfp4", "mxfp4")]


SHAPES = [
    TensorSpec("w13", "int4", (192, 256), (256, 256), 128, 2),
    TensorSpec("w2", "int8", (256, 96), (256, 128), 128),
    TensorSpec("head", "int8", (40_000, 512), (40_064, 512), 64),
    TensorSpec("w13", "mxfp4", (5760, 2880), (5888, 2944), 32, 2),
    TensorSpec("w2", "int4", (100, 12_000), (128, 12_032), 32),
]


KEPT = [(spec, None) for spec in SHAPES] + [(spec, "mxfp4") for spec in SHAPES if spec.codec != "int4"]


@pytest.mark.parametrize(("spec", "kept"), KEPT, ids=str)
def test_rates_are_of_small_samples(spec, kept, monkeypatch):
    sizes = []

    def run(task, jobs):
        task()
        return jobs / 2

    encode = estimating.encode_quantized

    def note(sample, *rest):
        sizes.append(math.prod(sample.padded_shape))
        return encode(sample, *rest)

    monkeypatch.setattr(estimating, "_rounds", run)
    monkeypatch.setattr(estimating, "encode_quantized", note)
    found = rate(spec, ("marlin", "cpu"), 3, kept)
    assert 0 < found <= 3 * sizes[0]
    assert sizes[0] <= max(1 << 22, 128 * spec.parts * spec.padded_shape[1])


def test_a_rate_is_measured():
    assert rate(SHAPES[0], ("cpu",), 2) > 0
    assert estimating.hash_rate(2) > 1e6
