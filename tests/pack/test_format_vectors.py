"""The vectors in formats/vectors, and that pack-v1.md names every error they show."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from krasis import layout, quant
from krasis.cli.verify import verify
from krasis.errors import InputError
from krasis.pack import manifest as manifests
from krasis.pack import strict_json
from krasis.pack.reader import Pack
from krasis.quant.codec import Quantized

FORMATS = Path(__file__).parents[2] / "formats"
VECTORS = FORMATS / "vectors/pack-v1"
VALID = json.loads((VECTORS / "valid/index.json").read_bytes())
INVALID = json.loads((VECTORS / "invalid/index.json").read_bytes())
MANIFESTS, PACKS = INVALID["manifests"], INVALID["packs"]
SCHEMA = jsonschema.Draft202012Validator(json.loads((FORMATS / "pack-v1.schema.json").read_bytes()))


def meaning(pack, segment, order, record, spec):
    """The float32 weights of a tensor, padded, as krasis reads them."""
    arrays, codec = pack.arrays(segment, order, record), quant.get(spec.codec)
    if not spec.quantized:
        return codec.decode(arrays[spec.name, "values"])
    found = layout.get(order)
    codes = found.unpack(arrays[spec.name, "codes"], codec.BITS)
    scales = found.unpack_scales(arrays[spec.name, "scales"], len(codes), spec.group_size)
    return codec.dequantize(Quantized(codes, scales))


def without_pads(weight, spec):
    if spec.padded_shape == spec.shape:
        return weight
    rows, k = spec.shape[0] // spec.parts, spec.shape[-1]
    parts = weight.view(spec.parts, spec.padded_shape[0] // spec.parts, -1)
    parts, pad = parts[:, :rows], parts[:, rows:]
    assert not pad.any()
    if spec.quantized:
        parts, pad = parts[:, :, :k], parts[:, :, k:]
        assert not pad.any()
    return parts.reshape(spec.shape)


@pytest.mark.parametrize("name", VALID)
def test_valid_pack_means_what_is_stored_beside_it(name):
    pack = Pack(VECTORS / "valid" / name)
    values = torch.from_numpy(np.fromfile(VECTORS / "valid" / VALID[name]["values"], "<f2").astype(np.float32))
    compared = 0
    for tensor in VALID[name]["tensors"]:
        for order in pack.layouts_of[tensor["segment"]]:
            spec = next(t for t in pack.segment(tensor["segment"], order).tensors if t.name == tensor["tensor"])
            found = without_pads(meaning(pack, tensor["segment"], order, tensor["record"], spec), spec)
            expected = values[tensor["first"] : tensor["first"] + found.numel()].reshape(tensor["shape"])
            assert torch.equal(found, expected)
            compared += 1
    assert compared == sum(len(s.tensors) * s.count for _, s in pack.manifest.segments())
    assert all(matches for _, _, matches in pack.verify())


@pytest.mark.parametrize("name", VALID)
def test_valid_manifest_passes_the_schema(name):
    SCHEMA.validate(json.loads((VECTORS / "valid" / name / "manifest.json").read_bytes()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_invalid_manifest_is_refused(name):
    with pytest.raises(InputError) as caught:
        manifests.decode((VECTORS / "invalid/manifests" / name).read_bytes(), name)
    assert MANIFESTS[name]["error"] in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", MANIFESTS)
def test_schema_sees_what_the_index_says_it_sees(name):
    try:
        tree = strict_json.parse((VECTORS / "invalid/manifests" / name).read_bytes())
    except ValueError:
        assert MANIFESTS[name]["rule"] in ("json", "duplicate-key")
        assert not MANIFESTS[name]["schema"]
        return
    assert SCHEMA.is_valid(tree) != MANIFESTS[name]["schema"]


@pytest.mark.parametrize("name", PACKS)
def test_invalid_pack_is_refused(name):
    with pytest.raises(InputError) as caught:
        verify(VECTORS / "invalid/packs" / name)
    assert PACKS[name]["error"] in str(caught.value)
    assert caught.value.exit_code == 3


def test_vectors_are_what_the_script_makes(tmp_path):
    subprocess.run([sys.executable, FORMATS / "vectors/make.py", tmp_path], check=True)
    made, kept = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (tmp_path, VECTORS))
    assert made == kept


def absent(pack):
    shutil.rmtree(pack)


def unfinished(pack):
    return pack.rename(pack.with_name("tiny.partial"))


def without_manifest(pack):
    (pack / "manifest.json").unlink()


def manifest_is_pipe(pack):
    (pack / "manifest.json").unlink()
    os.mkfifo(pack / "manifest.json")


def huge_manifest(pack):
    with (pack / "manifest.json").open("ab") as file:
        file.write(b" " * (16 << 20))


def linked(name):
    def spoil(pack):
        elsewhere = (pack / name).rename(pack.parent / name)
        (pack / name).symlink_to(elsewhere)

    return spoil


def folder_as_file(pack):
    (pack / "weights.bin").unlink()
    (pack / "weights.bin").mkdir()


# Rules that no stored file can break.
BUILT = [
    ("folder", absent),
    ("unfinished", unfinished),
    ("no-manifest", without_manifest),
    ("no-manifest", manifest_is_pipe),
    ("no-manifest", linked("manifest.json")),
    ("too-large", huge_manifest),
    ("missing", linked("weights.bin")),
    ("missing", linked("tokenizer_config.json")),
    ("missing", folder_as_file),
]


def stated_rules():
    """rule -> error, from the table of pack-v1.md."""
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| `([^`]+)` \|$", (FORMATS / "pack-v1.md").read_text(), re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@pytest.mark.parametrize(("rule", "spoil"), BUILT, ids=lambda value: getattr(value, "__name__", value))
def test_spoilt_pack_is_refused(rule, spoil, tiny):
    path = spoil(tiny) or tiny
    with pytest.raises(InputError) as caught:
        Pack(path)
    assert stated_rules()[rule] in str(caught.value)


def test_every_stated_rule_has_a_vector():
    stored = {entry["rule"] for entry in [*MANIFESTS.values(), *PACKS.values()]}
    assert stored | {rule for rule, _ in BUILT} == set(stated_rules())


@pytest.mark.parametrize("name", MANIFESTS)
def test_error_is_the_one_the_text_states(name):
    with pytest.raises(InputError, match=re.escape(stated_rules()[MANIFESTS[name]["rule"]])):
        manifests.decode((VECTORS / "invalid/manifests" / name).read_bytes(), name)


@pytest.mark.parametrize("name", PACKS)
def test_error_of_a_pack_is_the_one_the_text_states(name):
    with pytest.raises(InputError, match=re.escape(stated_rules()[PACKS[name]["rule"]])):
        verify(VECTORS / "invalid/packs" / name)
