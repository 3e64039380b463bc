"""Whole packs made from the text of the formats alone, one number at a time, so that they can hold krasis to it."""

import hashlib
import json
import math
import struct
from collections.abc import Callable

ZERO = {4: 8, 8: 128}
Json = dict
Codes = Callable[[int, int], int]


def code_at(bits: int, seed: int) -> Codes:
    return lambda k, n: (7 * k + 11 * n + k * n + seed) % 2**bits


def scale_at(group: int, n: int) -> float:
    """Powers of two, one in seven negative, so that every product is exact in float16."""
    return (-1 if n % 7 == 3 else 1) * 2.0 ** -(4 + (3 * n + group) % 5)


class Matrix:
    """A quantized matrix: what it means, what the manifest says, and its bytes in each layout."""

    def __init__(self, name: str, bits: int, shape: tuple, padded: tuple, group: int, parts: int = 1, seed: int = 0):
        self.name, self.bits, self.shape, self.padded, self.group, self.parts = name, bits, shape, padded, group, parts
        self._code = code_at(bits, seed)

    def entry(self) -> Json:
        fields = {"group_size": self.group, "parts": self.parts}
        shapes = {"shape": self.shape, "padded_shape": self.padded}
        return {"name": self.name, "codec": f"int{self.bits}", **shapes, **fields}

    def _row(self, n: int) -> int:
        """The logical row that padded row n holds, -1 for a pad."""
        rows, padded_rows = self.shape[0] // self.parts, self.padded[0] // self.parts
        return n // padded_rows * rows + n % padded_rows if n % padded_rows < rows else -1

    def code(self, k: int, n: int) -> int:
        pad = self._row(n) < 0 or k >= self.shape[1]
        return ZERO[self.bits] if pad else self._code(k, self._row(n))

    def scale(self, group: int, n: int) -> float:
        pad = self._row(n) < 0 or group * self.group >= self.shape[1]
        return 0.0 if pad else scale_at(group, self._row(n))

    def values(self) -> list[float]:
        """What it means, row by row, pads left out."""
        rows, k = self.shape
        zero, g = ZERO[self.bits], self.group
        return [(self._code(j, n) - zero) * scale_at(j // g, n) for n in range(rows) for j in range(k)]

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
        plain = [m.scale(group, n) for n in range(rows)]
        if depth == m.group:
            order = [b + 2 * i + j % 2 + 8 * (j // 2) for b in range(0, rows, 32) for i in range(4) for j in range(8)]
        else:
            order = [b + i + 8 * j for b in range(0, rows, 64) for i in range(8) for j in range(8)]
        out += b"".join(bf16(plain[n]) for n in order)
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
    return b"".join(bf16(m.scale(g, n)) for n, g in places)


PLACE = {"marlin": marlin_codes, "cpu": cpu_codes}
SCALES = {"marlin": marlin_scales, "cpu": cpu_scales}


class Plain:
    """An unquantized tensor of quarters that count up from `first` / 4."""

    def __init__(self, name: str, codec: str, shape: tuple, first: int = 0):
        self.name, self.codec, self.shape, self.first = name, codec, shape, first

    def entry(self) -> Json:
        shapes = {"shape": self.shape, "padded_shape": self.shape}
        return {"name": self.name, "codec": self.codec, **shapes, "group_size": 0, "parts": 1}

    def values(self) -> list[float]:
        return [(self.first + i) / 4 for i in range(math.prod(self.shape))]

    def sections(self, layout: str) -> list[bytes]:
        write = bf16 if self.codec == "bf16" else (lambda value: struct.pack("<f", value))
        return [b"".join(map(write, self.values()))]


def bf16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


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
    matrix, norm = Matrix("w", 4, (128, 64), (128, 64), 32), Plain("norm", "bf16", (64,))
    stored = [("attn", "marlin", [[matrix]]), ("attn", "cpu", [[matrix]]), ("base", "plain", [[norm]])]
    return *build(stored, {"attn.w": [0.0625]}), {"attn": [[matrix]], "base": [[norm]]}


def experts() -> tuple[Json, dict[str, bytes], dict[str, list]]:
    """An expert of padded matrices, one of them in two parts, and two records of a plain float32 tensor."""
    expert = [Matrix("w13", 4, (96, 40), (128, 64), 32, parts=2), Matrix("w2", 8, (40, 48), (128, 64), 64, seed=5)]
    routers = [[Plain("router", "f32", (3, 5), first)] for first in (0, 15)]
    stored = [("experts", "marlin", [expert]), ("routers", "plain", routers), ("experts", "cpu", [expert])]
    errors = {"experts.w13": [0.09], "experts.w2": [0]}
    return *build(stored, errors), {"experts": [expert], "routers": routers}
