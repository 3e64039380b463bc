"""Write the JSON Schemas anew from the code that reads the formats: `python formats/schemas.py [FOLDER]`."""

import inspect
import json
import sys
from pathlib import Path

import msgspec

from krasis.heat.imatrix import Header
from krasis.heat.profile import HeatProfile
from krasis.pack.manifest import Manifest

SCHEMAS = {
    "pack-v1.schema.json": (Manifest, "urn:krasis:pack:1", "Manifest of a krasis pack, version 1"),
    "heat-v1.schema.json": (HeatProfile, "urn:krasis:heat:1", "krasis heat profile, version 1, decompressed"),
    "imatrix-v1.schema.json": (Header, "urn:krasis:imatrix:1", "Metadata of a krasis importance matrix, version 1"),
}


def generate(name: str) -> str:
    """The text of one schema."""
    struct, identity, title = SCHEMAS[name]
    schema = msgspec.json.schema(struct)
    for part in schema["$defs"].values():
        part["description"] = " ".join(inspect.cleandoc(part["description"]).split())
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": identity, "title": title}
    return json.dumps(head | schema, indent=1) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file_name in SCHEMAS:
        (folder / file_name).write_text(generate(file_name))
