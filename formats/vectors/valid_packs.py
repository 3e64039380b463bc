"""Whole packs made from the text of the formats alone, one number at a time, so that they can hold krasis to it."""

import hashlib
import json
import math
import struct
from collections.abc import Callable

BITS = {"int4": 4, "int8": 8, "mxfp4": 4}
ZERO = {"int4": 8, "int8": 128, "mxfp4": 0}
MINUS_ZERO = 8
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
Json = dict
Codes = Callable[[int, int], int]


def code_at(codec: str, seed: int) -> Codes:
    def code(k: int, n: int) -> int:
        found = (7 * k + 11 * n + k * n + seed) % 2 ** BITS[codec]
        return ZERO[codec] if codec == "mxfp4" and found == MINUS_ZERO else found

    return code


def scale_at(codec: str, group: int, n: int) -> float:
    """Powers of two, where the codec has signs one in seven negative, so that every product is exact in float16."""
    negative = n % 7 == 3 and codec != "mxfp4"
    return (-1 if negative else 1) * 2.0 ** -(4 + (3 * n + group) % 5)


def value(codec: str, code: int) -> float:
    """What a code counts in units of the scale."""
    if codec == "mxfp4":
        return -E2M1[code - 8] if code >= 8 else E2M1[code]
    return code - ZERO[codec]


def logical_row(tensor: "Matrix | Plain", n: int) -> int:
    """The logical row that padded row n of a tensor holds, -1 for a pad."""
    rows, padded_rows = tensor.shape[0] // tensor.parts, tensor.padded[0] // tensor.parts
    return n // padded_rows * rows + n % padded_rows if n % padded_rows < rows else -1


class Matrix:
    """A quantized matrix: what it means, what the manifest says, and its bytes in each layout."""

    def __init__(self, name: str, codec: str, shape: tuple, padded: tuple, group: int, parts: int = 1, seed: int = 0):
        self.name, self.codec, self.bits = name, codec, BITS[codec]
        self.shape, self.padded, self.group, self.parts = shape, padded, group, parts
        self._code = code_at(codec, seed)

    def entry(self) -> Json:
        fields = {"group_size": self.group, "parts": self.parts}
        shapes = {"shape": self.shape, "padded_shape": self.padded}
        return {"name": self.name, "codec": self.codec, **shapes, **fields}

    def code(self, k: int, n: int) -> int:
        pad = logical_row(self, n) < 0 or k >= self.shape[1]
        return ZERO[self.codec] if pad else self._code(k, logical_row(self, n))

    def scale(self, group: int, n: int) -> float:
        pad = logical_row(self, n) < 0 or group * self.group >= self.shape[1]
        return 0.0 if pad else scale_at(self.codec, group, logical_row(self, n))

    def scale_bytes(self, group: int, n: int) -> bytes:
        return e8m0(self.scale(group, n)) if self.codec == "mxfp4" else bf16(self.scale(group, n))

    def values(self) -> list[float]:
        """What it means, row by row, pads left out."""
        rows, k = self.shape
        codec, g = self.codec, self.group
        return [value(codec, self._code(j, n)) * scale_at(codec, j // g, n) for n in range(rows) for j in range(k)]

    def sections(self, layout: str) -> list[bytes]:
        return [PLACE[layout](self), SCALES[layout](self)]


def marlin_codes(m: Matrix) -> bytes:
    rows, depth = m.padded
    words = [[0] * (rows * m.bits // 2) for _ in range(depth // 16)]
    for k in range(depth):
        for n in range(rows):
            r, t, c = k % 16, n // 64, n % 64
            w, h, lane = c // 16, c % 16 // 8, 4 * (c % 8) + r % 8 // 2
            if m.bits == 4:
                word, bit = 128 * t + 4 * lane + w, 4 * (2 * h + r // 8 + 4 * (r % 2))
            else:
                word, bit = 256 * t + 8 * lane + 2 * w + h, 8 * (r // 8 + 2 * (r % 2))
            words[k // 16][word] |= m.code(k, n) << bit
    return b"".join(struct.pack(f"<{len(row)}I", *row) for row in words)


def marlin_scales(m: Matrix) -> bytes:
    rows, depth = m.padded
    out = b""
    for group in range(depth // m.group):
        plain = [m.scale_bytes(group, n) for n in range(rows)]
        if m.codec == "mxfp4":
            swapped = (0, 2, 1, 3, 4, 6, 5, 7)
            order = [b + i + 8 * j for b in range(0, rows, 64) for i in range(8) for j in swapped]
        elif depth == m.group:
            order = [b + 2 * i + j % 2 + 8 * (j // 2) for b in range(0, rows, 32) for i in range(4) for j in range(8)]
        else:
            order = [b + i + 8 * j for b in range(0, rows, 64) for i in range(8) for j in range(8)]
        out += b"".join(plain[n] for n in order)
    return out


def cpu_codes(m: Matrix) -> bytes:
    rows, depth = m.padded
    out = bytearray(rows * depth * m.bits // 8)
    step = 8 if m.bits == 4 else 4
    for k in range(depth):
        for n in range(rows):
            at = ((n // 16 * (depth // step) + k // step) * 16 + n % 16) * 4 + k % 4
            out[at] |= m.code(k, n) << (4 if m.bits == 4 and k % 8 >= 4 else 0)
    return bytes(out)


def cpu_scales(m: Matrix) -> bytes:
    rows, depth = m.padded
    places = ((n, g) for tile in range(0, rows, 16) for g in range(depth // m.group) for n in range(tile, tile + 16))
    return b"".join(m.scale_bytes(g, n) for n, g in places)


PLACE = {"marlin": marlin_codes, "cpu": cpu_codes}
SCALES = {"marlin": marlin_scales, "cpu": cpu_scales}


class Plain:
    """An unquantized tensor of quarters that count up from `first` / 4."""

    def __init__(self, name: str, codec: str, shape: tuple, first: int = 0, padded: tuple = (), parts: int = 1):
        self.name, self.codec, self.shape, self.first = name, codec, shape, first
        self.padded, self.parts = padded or shape, parts

    def entry(self) -> Json:
        shapes = {"shape": self.shape, "padded_shape": self.padded}
        return {"name": self.name, "codec": self.codec, **shapes, "group_size": 0, "parts": self.parts}

    def values(self) -> list[float]:
        return [(self.first + i) / 4 for i in range(math.prod(self.shape))]

    def sections(self, layout: str) -> list[bytes]:
        write = bf16 if self.codec == "bf16" else (lambda value: struct.pack("<f", value))
        return [b"".join(map(write, self._stored()))]

    def _stored(self) -> list[float]:
        values = self.values()
        if self.padded == self.shape:
            return values
        rows = (logical_row(self, n) for n in range(self.padded[0]))
        return [0.0 if row < 0 else values[row] for row in rows]


def bf16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def e8m0(power: float) -> bytes:
    return bytes([int(math.log2(power)) + 127 if power else 0])


def fill(content: bytes, to: int) -> bytes:
    return content + bytes(-len(content) % to)


def record(tensors: list, layout: str) -> bytes:
    sections = [fill(section, 256) for tensor in tensors for section in tensor.sections(layout)]
    return fill(b"".join(sections), 4096)


def segment(name: str, layout: str, offset: int, records: list[list]) -> tuple[Json, bytes]:
    content = [record(tensors, layout) for tensors in records]
    hashes = [hashlib.sha256(one).hexdigest() for one in content]
    tensors = [tensor.entry() for tensor in records[0]]
    entry = {"name": name, "layout": layout, "offset": offset, "tensors": tensors, "sha256": hashes}
    return entry, b"".join(content)


def reroot(tree: Json) -> bytes:
    """The manifest's bytes with its root hash put in."""
    body = json.dumps(tree | {"root": "0" * 64}, separators=(",", ":")).encode()
    return body.replace(b"0" * 64, hashlib.sha256(body).hexdigest().encode(), 1)


def build(stored: list[tuple[str, str, list[list]]], errors: Json) -> tuple[Json, dict[str, bytes]]:
    """A manifest without root, and the other files of the pack."""
    entries, weights, note = [], b"", b"{}\n"
    for name, layout, records in stored:
        entry, content = segment(name, layout, len(weights), records)
        entries.append(entry)
        weights += content
    tree = {
        "format": "krasis-pack",
        "version": 1,
        "root": "",
        "tool": "vectors",
        "settings": {"expert_bits": 4, "dense_bits": 8, "group_size": 32, "layouts": ["marlin", "cpu"]},
        "model": {"model_type": "none"},
        "source": [{"name": "model one.safetensors", "bytes": 1, "sha256": "1" * 64}],
        "extras": [{"name": "tokenizer_config.json", "bytes": len(note), "sha256": hashlib.sha256(note).hexdigest()}],
        "files": [{"name": "weights.bin", "bytes": len(weights), "segments": entries}],
        "errors": errors,
    }
    return tree, {"weights.bin": weights, "tokenizer_config.json": note}


def tiny() -> tuple[Json, dict[str, bytes], dict[str, list]]:
    """One INT4 matrix in each layout and one plain tensor. Also what each record means."""
    matrix, norm = Matrix("w", "int4", (128, 64), (128, 64), 32), Plain("norm", "bf16", (64,))
    stored = [("attn", "marlin", [[matrix]]), ("attn", "cpu", [[matrix]]), ("base", "plain", [[norm]])]
    return *build(stored, {"attn.w": [0.0625]}), {"attn": [[matrix]], "base": [[norm]]}


def experts() -> tuple[Json, dict[str, bytes], dict[str, list]]:
    """An expert of padded matrices, one of them in two parts, and two records of a plain float32 tensor."""
    w13 = Matrix("w13", "int4", (96, 40), (128, 64), 32, parts=2)
    expert = [w13, Matrix("w2", "int8", (40, 48), (128, 64), 64, seed=5)]
    routers = [[Plain("router", "f32", (3, 5), first)] for first in (0, 15)]
    stored = [("experts", "marlin", [expert]), ("routers", "plain", routers), ("experts", "cpu", [expert])]
    errors = {"experts.w13": [0.09], "experts.w2": [0]}
    return *build(stored, errors), {"experts": [expert], "routers": routers}


def mxfp4() -> tuple[Json, dict[str, bytes], dict[str, list]]:
    """An expert of MXFP4 matrices, one of them with three groups and a pad for a fourth, and a padded vector."""
    w13 = Matrix("w13", "mxfp4", (96, 40), (128, 64), 32, parts=2)
    b13 = Plain("b13", "f32", (96,), padded=(128,), parts=2)
    expert = [w13, b13, Matrix("w2", "mxfp4", (40, 96), (64, 128), 32, seed=5)]
    stored = [("experts", "marlin", [expert]), ("experts", "cpu", [expert])]
    return *build(stored, {"experts.w13": [0], "experts.w2": [0]}), {"experts": [expert]}
