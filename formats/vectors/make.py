"""Write pack-v1/ anew: `python formats/vectors/make.py [FOLDER]`. Needs nothing but Python."""

import json
import shutil
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from invalid_manifests import manifests
from valid_packs import experts, mxfp4, reroot, tiny


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_index(path: Path, tree: object) -> None:
    write(path, json.dumps(tree, indent=1).encode() + b"\n")


def write_pack(folder: Path, tree: dict, files: dict[str, bytes]) -> None:
    write(folder / "manifest.json", reroot(tree))
    for name, content in files.items():
        write(folder / name, content)


def write_valid(folder: Path) -> None:
    index = {}
    for make in (tiny, experts, mxfp4):
        tree, files, meaning = make()
        write_pack(folder / make.__name__, tree, files)
        values, listed = [], []
        for segment, records in meaning.items():
            for number, record in enumerate(records):
                for tensor in record:
                    listed.append({"segment": segment, "record": number, "tensor": tensor.name})
                    listed[-1] |= {"shape": tensor.shape, "first": len(values)}
                    values += tensor.values()
        name = f"{make.__name__}.f16"
        write(folder / name, struct.pack(f"<{len(values)}e", *values))
        index[make.__name__] = {"values": name, "tensors": listed}
    write_index(folder / "index.json", index)


def write_invalid(folder: Path) -> None:
    index = {"manifests": {}, "packs": {}}
    for name, (rule, error, seen_by_schema, raw) in manifests(small()).items():
        write(folder / "manifests" / f"{name}.json", raw)
        index["manifests"][f"{name}.json"] = {"rule": rule, "error": error, "schema": seen_by_schema}
    for name, (rule, error, tree, files) in packs().items():
        write_pack(folder / "packs" / name, tree, files)
        index["packs"][name] = {"rule": rule, "error": error}
    write_index(folder / "index.json", index)


def small() -> dict:
    """The manifest of tiny without its copy in layout cpu."""
    tree, _, _ = tiny()
    marlin, _, plain = tree["files"][0]["segments"]
    tree["files"][0] |= {"bytes": 12288, "segments": [marlin, plain | {"offset": 8192}]}
    tree["settings"]["layouts"] = ["marlin"]
    return tree | {"source": []}


def packs() -> dict:
    """Whole packs of one plain record whose folder is wrong: rule, error, manifest, files."""
    tree, files, _ = tiny()
    file = tree["files"][0]
    record = files["weights.bin"][-4096:]
    file |= {"bytes": 4096, "segments": [file["segments"][-1] | {"offset": 0}]}
    tree["errors"] = {}
    note = {"tokenizer_config.json": files["tokenizer_config.json"]}
    flipped = bytes([record[0] ^ 1]) + record[1:]
    missing = "a file of the pack is missing"
    return {
        "truncated": ("truncated", "truncated", tree, note | {"weights.bin": record[:-1]}),
        "longer": ("longer", "longer than it should be", tree, note | {"weights.bin": record + b"\0"}),
        "empty-file": ("truncated", "truncated", tree, note | {"weights.bin": b""}),
        "missing": ("missing", missing, tree, note),
        "missing-extra": ("missing", missing, tree, {"weights.bin": record}),
        "flipped": ("hash", "hash mismatch in base[0]@plain", tree, note | {"weights.bin": flipped}),
        "flipped-fill": ("hash", "hash mismatch in base[0]@plain", tree, note | {"weights.bin": record[:-1] + b"\1"}),
        "flipped-extra": (
            "hash",
            "hash mismatch in tokenizer_config.json",
            tree,
            {"tokenizer_config.json": b"[]\n", "weights.bin": record},
        ),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pack-v1"
    for kind in ("valid", "invalid"):
        shutil.rmtree(target / kind, ignore_errors=True)
    write_valid(target / "valid")
    write_invalid(target / "invalid")
