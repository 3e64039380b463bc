"""Write heat-v1/ anew: `python formats/vectors/make_heat.py [FOLDER]`. Needs nothing but Python."""

import json
import shutil
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from invalid_manifests import DROP, changed

LARGEST = 64 << 20
MODEL = {"model_type": "qwen3_moe", "hidden_size": 64}
TEXTS = [
    {"name": "a text.txt", "bytes": 50, "sha256": "0" * 64, "tokens": 9, "held_out": 3},
    {"name": "talk.jsonl", "bytes": 9, "sha256": "1" * 64, "tokens": 3, "held_out": 0},
]
LAYERS = [
    {
        "layer": 0,
        "prefill": {"counts": [5, 0, 7], "weights": [2.5, 0.0, 3.25]},
        "decode": {"counts": [2, 2, 0], "weights": [0.75, 1, 0]},
    },
    {
        "layer": 2,
        "prefill": {"counts": [8, 4], "weights": [4.0, 0.0]},
        "decode": {"counts": [0, 4], "weights": [0.0, 1.5]},
    },
]
HEAT = {
    "format": "krasis-heat",
    "version": 1,
    "tool": "by hand",
    "pack_root": "ab" * 32,
    "model": MODEL,
    "corpus": TEXTS,
    "tokens": {"prefill": 8, "decode": 4},
    "layers": LAYERS,
}


def frame(text: bytes) -> bytes:
    """A zstd frame (RFC 8878) of one raw block: magic, a header that states the size in 4 bytes, block header, text."""
    header = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(text))
    return header + struct.pack("<I", len(text) << 3 | 1)[:3] + text


def packed(tree: object) -> bytes:
    return frame(json.dumps(tree).encode())


def valid() -> dict[str, dict]:
    nothing = {"counts": [0], "weights": [0]}
    return {
        "two-phases": HEAT,
        "merged": HEAT | {"pack_root": None},
        "empty": HEAT
        | {"corpus": [], "tokens": {"prefill": 0, "decode": 0}}
        | {"layers": [{"layer": 1, "prefill": nothing, "decode": nothing}]},
        "no-layers": HEAT | {"layers": []},
    }


def invalid() -> dict[str, tuple[str, str, bool, bytes]]:
    """Name -> rule, error, whether the schema sees it, bytes."""
    made = {name: (rule, error, False, raw) for name, (rule, error, raw) in _bytes().items()}
    for name, (rule, error, seen, path, value) in _trees().items():
        made[name] = (rule, error, seen, packed(changed(HEAT, path, value)))
    return made


def _bytes() -> dict[str, tuple[str, str, bytes]]:
    good, no_heat = packed(HEAT), "not a heat profile"
    bomb = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", LARGEST + 1) + b"\x01\x00\x00"
    infinite = json.dumps(HEAT).replace("2.5", "Infinity").encode()
    return {
        "nothing": ("frame", no_heat, b""),
        "plain-json": ("frame", no_heat, json.dumps(HEAT).encode()),
        "cut-short": ("frame", no_heat, good[:-1]),
        "more-after": ("frame", no_heat, good + b"more"),
        "two-frames": ("frame", no_heat, good + good),
        "too-large": ("too-large", "larger than", bomb),
        "not-utf8": ("json", no_heat, frame(b"\xff")),
        "infinity": ("json", no_heat, frame(infinite)),
        "key-twice": (
            "json",
            no_heat,
            frame(json.dumps(HEAT).replace('"version"', '"tool": "", "version"', 1).encode()),
        ),
    }


def _trees() -> dict[str, tuple[str, str, bool, str, object]]:
    layer, schema, sums = "layers.0.decode", "not a heat profile", "the texts do not add up to the tokens"
    lengths, order = "has lists of different lengths", "layers are not in ascending order"
    return {
        "pack": ("format", 'no "format"', True, "format", "krasis-pack"),
        "newer": ("version", "is newer", True, "version", 2),
        "older": ("schema", schema, True, "version", 0),
        "key-unknown": ("schema", schema, True, "more", 1),
        "model-missing": ("schema", schema, True, "model", DROP),
        "root-in-capitals": ("schema", schema, True, "pack_root", "AB" * 32),
        "control-character": ("schema", schema, True, "corpus.0.name", "a\x1b"),
        "held-out-missing": ("schema", schema, True, "corpus.0.held_out", DROP),
        "tokens-together": ("schema", schema, True, "tokens", 12),
        "decode-missing": ("schema", schema, True, layer, DROP),
        "count-negative": ("schema", schema, True, f"{layer}.counts.0", -1),
        "count-half": ("schema", schema, True, f"{layer}.counts.0", 0.5),
        "count-huge": ("schema", schema, True, f"{layer}.counts.0", 10**400),
        "weight-negative": ("schema", schema, True, f"{layer}.weights.0", -0.5),
        "weight-null": ("schema", schema, True, f"{layer}.weights.0", None),
        "no-experts": ("schema", schema, True, f"{layer}.counts", []),
        "texts-too-few": ("sums", sums, False, "corpus.0.tokens", 8),
        "layers-swapped": ("order", order, False, "layers", LAYERS[::-1]),
        "layer-twice": ("order", order, False, "layers", LAYERS[:1] * 2),
        "weights-too-few": ("lengths", lengths, False, f"{layer}.weights", [0.75, 1]),
        "phases-differ": ("lengths", lengths, False, layer, LAYERS[1]["decode"]),
        "count-above-tokens": ("tokens", "more tokens than the profile", False, f"{layer}.counts.0", 5),
        "weight-of-nothing": ("weight", "has weight and no tokens", False, f"{layer}.weights.2", 0.5),
    }


def main(folder: Path) -> None:
    for kind in ("valid", "invalid"):
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir(parents=True)
    for name, tree in valid().items():
        (folder / "valid" / f"{name}.json.zst").write_bytes(packed(tree))
    index = {}
    for name, (rule, error, seen, raw) in invalid().items():
        (folder / "invalid" / f"{name}.json.zst").write_bytes(raw)
        index[f"{name}.json.zst"] = {"rule": rule, "error": error, "schema": seen}
    (folder / "invalid" / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "heat-v1")
