"""One small manifest for every way of breaking a rule: rule, error, whether a schema can see it, bytes."""

import copy
import json

from valid_packs import reroot

HUGE = 10**400


def manifests(valid: dict) -> dict[str, tuple[str, str, bool, bytes]]:
    """`valid` is the manifest each is broken from: a quantized segment in layout marlin, then a plain one."""
    made = {
        name: (rule, error, rule in ("format", "version") or name in SEEN, raw)
        for name, (rule, error, raw) in _bytes(valid).items()
    }
    for name, (rule, error, path, value) in _schema().items():
        made[name] = (rule, error, True, reroot(changed(valid, path, value)))
    for name, (rule, error, *edits) in _meaning(valid).items():
        tree = valid
        for path, value in edits:
            tree = changed(tree, path, value)
        made[name] = (rule, error, False, reroot(tree))
    return made


def changed(valid: dict, path: str, value: object) -> dict:
    """A copy with the value at a dotted path set, or dropped where `value` is DROP."""
    tree = copy.deepcopy(valid)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    node = tree
    for step in way:
        node = node[step]
    if value is DROP:
        del node[last]
    else:
        node[last] = value
    return tree


DROP = object()
SEEN = {"root-missing", "lone-surrogate-key"}
SEGMENT = "files.0.segments.0"
TENSOR = f"{SEGMENT}.tensors.0"
NORM = "files.0.segments.1.tensors.0"


def _bytes(valid: dict) -> dict[str, tuple[str, str, bytes]]:
    """What is wrong before a schema can be asked."""
    good = reroot(valid)
    strict = "not strict JSON"
    infinite = reroot(changed(valid, "errors", {"attn.w": [float("inf")]}))
    nan = reroot(changed(valid, "errors", {"attn.w": [float("nan")]}))
    twice = good.replace(b'"version":1', b'"version":1,"version":1')
    rootless = json.dumps(changed(valid, "root", DROP)).encode()
    return {
        "empty": ("json", strict, b""),
        "not-json": ("json", strict, b"PK\3\4"),
        "cut-short": ("json", strict, good[:-1]),
        "two-values": ("json", strict, good + good),
        "trailing-comma": ("json", strict, good[:-1] + b",}"),
        "comment": ("json", strict, good + b"// end"),
        "invalid-utf8": ("json", strict, good.replace(b"vectors", b"v\xffctors")),
        "utf16": ("json", strict, good.decode().encode("utf-16")),
        "byte-order-mark": ("json", strict, b"\xef\xbb\xbf" + good),
        "nan": ("json", "NaN is not a JSON number", nan),
        "infinity": ("json", "Infinity is not a JSON number", infinite),
        "deep": ("json", strict, b"[" * 2000),
        "duplicate-key": ("duplicate-key", "duplicate key 'version'", twice),
        "duplicate-key-deep": ("duplicate-key", "duplicate key 'n'", good.replace(b'"none"', b'{"n":1,"n":1}')),
        "not-an-object": ("format", "not a krasis pack", b"[]"),
        "null": ("format", "not a krasis pack", b"null"),
        "no-format": ("format", "not a krasis pack", reroot(changed(valid, "format", DROP))),
        "other-format": ("format", "not a krasis pack", reroot(changed(valid, "format", "safetensors"))),
        "newer": ("version", "format version 2 is newer", reroot(changed(valid, "version", 2))),
        "much-newer": ("version", "is newer", reroot(changed(valid, "version", 1 << 80))),
        "number-too-large": ("schema", "Number out of range", nan.replace(b"NaN", b"1e999")),
        "lone-surrogate": ("schema", "breaks the schema", good.replace(b'"none"', b'"\\ud800"')),
        "lone-surrogate-key": ("schema", "breaks the schema", good.replace(b'"tool"', b'"\\ud800"')),
        "root-zero": ("root", "does not match its root hash", json.dumps(valid | {"root": "0" * 64}).encode()),
        "root-missing": ("schema", "breaks the schema", rootless),
        "changed-after-hashing": ("root", "does not match its root hash", good.replace(b"vectors", b"Vectors")),
        "space-added": ("root", "does not match its root hash", good + b" "),
    }


def _schema() -> dict[str, tuple[str, str, str, object]]:
    breaks = "breaks the schema"
    wrong = {
        "version-zero": ("version", 0),
        "version-true": ("version", True),
        "version-text": ("version", "1"),
        "errors-missing": ("errors", DROP),
        "unknown-key": ("comment", "hello"),
        "unknown-key-segment": (f"{SEGMENT}.count", 1),
        "unknown-key-tensor": (f"{TENSOR}.bias", True),
        "tool-escape": ("tool", "\x1b[2J"),
        "tool-newline": ("tool", "krasis\n"),
        "expert-bits": ("settings.expert_bits", 5),
        "dense-bits": ("settings.dense_bits", 4),
        "settings-group": ("settings.group_size", 48),
        "no-layouts": ("settings.layouts", []),
        "layout-path": (f"{SEGMENT}.layout", "../marlin"),
        "codec-path": (f"{TENSOR}.codec", "int4.pyc"),
        "file-in-parent": ("files.0.name", "../weights.bin"),
        "file-absolute": ("files.0.name", "/weights.bin"),
        "file-in-folder": ("files.0.name", "a/weights.bin"),
        "file-backslash": ("files.0.name", "a\\weights.bin"),
        "file-hidden": ("files.0.name", ".weights.bin"),
        "file-dots": ("files.0.name", ".."),
        "file-nameless": ("files.0.name", ""),
        "file-newline": ("files.0.name", "weights.bin\n"),
        "file-null-byte": ("files.0.name", "weights.bin\0"),
        "file-too-long": ("files.0.name", "w" * 256),
        "extra-in-parent": ("extras.0.name", "../tokenizer_config.json"),
        "extra-hidden": ("extras.0.name", ".env"),
        "no-files": ("files", []),
        "no-segments": ("files.0.segments", []),
        "no-tensors": (f"{SEGMENT}.tensors", []),
        "no-records": (f"{SEGMENT}.sha256", []),
        "hash-short": (f"{SEGMENT}.sha256", ["0" * 63]),
        "hash-upper": (f"{SEGMENT}.sha256", ["A" * 64]),
        "hash-newline": (f"{SEGMENT}.sha256", ["0" * 64 + "\n"]),
        "segment-name": (f"{SEGMENT}.name", "layers..0"),
        "tensor-name": (f"{TENSOR}.name", "w/x"),
        "bytes-negative": ("files.0.bytes", -1),
        "bytes-huge": ("files.0.bytes", HUGE),
        "bytes-beyond-double": ("files.0.bytes", 1 << 53),
        "bytes-fraction": ("files.0.bytes", 0.5),
        "offset-negative": (f"{SEGMENT}.offset", -4096),
        "group-size": (f"{TENSOR}.group_size", 48),
        "group-negative": (f"{TENSOR}.group_size", -1),
        "parts-zero": (f"{TENSOR}.parts", 0),
        "parts-three": (f"{TENSOR}.parts", 3),
        "dimension-zero": (f"{TENSOR}.shape", [128, 0]),
        "dimension-huge": (f"{TENSOR}.shape", [128, 1 << 31]),
        "no-dimensions": (f"{NORM}.shape", []),
        "five-dimensions": (f"{NORM}.shape", [1, 1, 1, 1, 64]),
        "error-negative": ("errors", {"attn.w": [-0.5]}),
        "error-null": ("errors", {"attn.w": [None]}),
        "model-list": ("model", []),
    }
    return {name: ("schema", breaks, path, value) for name, (path, value) in wrong.items()}


def norm_as(shape: list, padded: list) -> list[tuple[str, list]]:
    return [(f"{NORM}.shape", shape), (f"{NORM}.padded_shape", padded)]


def _meaning(valid: dict) -> dict[str, tuple]:
    """What every schema passes: rule, error, then edits."""
    file, extra = valid["files"][0], valid["extras"][0]
    marlin, plain = file["segments"]
    shorter = [marlin["tensors"][0] | {"shape": [120, 64]}]
    twin = marlin | {"layout": "cpu", "offset": 12288, "tensors": shorter}
    widest = [(1 << 31) - 1] * 4
    # Rule, what the error says, edits.
    return {
        "file-twice": ("duplicate", "file 'weights.bin' is listed twice", ("files", [file, file])),
        "extra-is-file": ("duplicate", "is listed twice", ("extras", [extra | {"name": "weights.bin"}])),
        "segment-twice": ("duplicate", "segment 'attn@marlin' is listed twice", ("files.0.segments", [marlin, marlin])),
        "tensor-twice": ("duplicate", "'norm' is listed twice", ("files.0.segments.1.tensors", plain["tensors"] * 2)),
        "layout-twice": ("duplicate", "layout 'cpu' is listed twice", ("settings.layouts", ["cpu", "cpu"])),
        "file-is-manifest": ("reserved", "packs reserve", ("files.0.name", "manifest.json")),
        "extra-is-heat": ("reserved", "packs reserve", ("extras.0.name", "heat")),
        "extra-is-journal": ("reserved", "packs reserve", ("extras.0.name", "journal.jsonl")),
        "layout-not-in-settings": ("settings", "the settings do not name", ("settings.layouts", ["cpu"])),
        "unknown-layout": (
            "layout",
            "unknown layout 'swizzle'",
            ("settings.layouts", ["swizzle"]),
            (f"{SEGMENT}.layout", "swizzle"),
        ),
        "quantized-plain": ("layout", "unknown layout 'plain'", (f"{SEGMENT}.layout", "plain")),
        "unknown-codec": ("codec", "unknown codec 'int3'", (f"{TENSOR}.codec", "int3")),
        "module-as-codec": ("codec", "unknown codec 'groups'", (f"{TENSOR}.codec", "groups")),
        "plain-with-group": ("plain", "takes no group size", (f"{NORM}.group_size", 32)),
        "plain-in-parts": ("plain", "takes no group size", *norm_as([8, 8], [8, 8]), (f"{NORM}.parts", 2)),
        "plain-padded": ("plain", "takes no group size", *norm_as([8, 8], [16, 8])),
        "no-group": ("group", "needs a group size", (f"{TENSOR}.group_size", 0)),
        "group-of-another-codec": (
            "group",
            "mxfp4 needs a group size of 32",
            (f"{TENSOR}.codec", "mxfp4"),
            (f"{TENSOR}.group_size", 64),
        ),
        "vector-quantized": ("group", "two dimensions", (f"{TENSOR}.shape", [128])),
        "padded-below": ("padding", "can't be padded", (f"{TENSOR}.shape", [129, 64])),
        "padded-too-far": ("padding", "can't be padded", (f"{TENSOR}.padded_shape", [256, 64])),
        "depth-padded-too-far": ("padding", "can't be padded", (f"{TENSOR}.padded_shape", [128, 192])),
        "padded-short-of-tiles": ("padding", "can't be padded", (f"{TENSOR}.padded_shape", [128, 96])),
        "groups-not-whole": ("padding", "can't be padded", (f"{TENSOR}.group_size", 128)),
        "parts-uneven": ("padding", "can't be padded", (f"{TENSOR}.shape", [127, 64]), (f"{TENSOR}.parts", 2)),
        "part-below": ("padding", "can't be padded", (f"{TENSOR}.shape", [130, 64]), (f"{TENSOR}.parts", 2)),
        "vector-padded-too-far": ("padding", "can't be padded", *norm_as([64], [192])),
        "overlap": ("overlap", "overlaps what lies before it", ("files.0.segments.1.offset", 4096)),
        "hole": ("hole", "leaves a hole before it", ("files.0.segments.1.offset", 12288)),
        "hole-at-start": ("hole", "leaves a hole before it", ("files.0.segments.0.offset", 4096)),
        "wrong-order": ("hole", "leaves a hole before it", ("files.0.segments", [plain, marlin])),
        "file-bytes": ("file-size", "its segments take 12288", ("files.0.bytes", 8192)),
        "record-too-many": ("file-size", "its segments take 16384", ("files.0.segments.1.sha256", plain["sha256"] * 2)),
        "shape-larger": (
            "file-size",
            "its segments take 20480",
            *norm_as([6144], [6144]),
        ),
        "size-past-2-64": (
            "file-size",
            "its segments take",
            *norm_as(widest, widest),
        ),
        "layouts-differ": (
            "twins",
            "differs between marlin and cpu",
            ("settings.layouts", ["marlin", "cpu"]),
            ("files.0.segments", [marlin, plain, twin]),
            ("files.0.bytes", 20480),
        ),
        "errors-none": ("errors", "errors of attn.w: expected 1 figures, found 0", ("errors", {})),
        "errors-too-many": ("errors", "expected 1 figures, found 2", ("errors", {"attn.w": [0, 0]})),
        "errors-superfluous": ("errors", "which is no quantized matrix", ("errors", {"attn.w": [0], "attn.v": [0]})),
        "errors-of-plain": ("errors", "which is no quantized matrix", ("errors", {"attn.w": [0], "base.norm": [0]})),
    }
