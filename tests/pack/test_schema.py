"""The committed JSON Schemas against the code they come from and the packs it writes."""

import json
import runpy

import jsonschema
import pytest


@pytest.mark.parametrize("name", ["pack-v1.schema.json", "heat-v1.schema.json", "imatrix-v1.schema.json"])
def test_committed_schema_is_the_generated_one(formats, name):
    generate = runpy.run_path(str(formats / "schemas.py"))["generate"]
    text = (formats / name).read_text()
    assert text == generate(name)
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("layouts", [("marlin",), ("cpu",), ("cpu", "marlin")], ids=",".join)
@pytest.mark.parametrize(("expert_bits", "dense_bits"), [(4, 8), (8, 8), (16, 16)])
def test_converted_packs_pass_the_schema(formats, demo_pack, expert_bits, dense_bits, layouts):
    pack = demo_pack(expert_bits=expert_bits, dense_bits=dense_bits, layouts=layouts)
    tree = json.loads((pack / "manifest.json").read_bytes())
    jsonschema.validate(tree, json.loads((formats / "pack-v1.schema.json").read_bytes()))
    found = {segment["layout"] for file in tree["files"] for segment in file["segments"]}
    assert found == ({"plain"} if expert_bits == 16 else {"plain", *layouts})
