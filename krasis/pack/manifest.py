"""The manifest of a pack: a strict schema, parsed with every rule of formats/pack-v1.md checked."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from krasis.errors import InputError
from krasis.pack.record import GroupSize, TensorSpec, record_bytes

FORMAT, VERSION = "krasis-pack", 1
FILE_NAME = "manifest.json"
MAX_BYTES = 16 << 20
BLANK_ROOT = "0" * 64

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=255)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Meta(ge=0, lt=1 << 53)]


class FileHash(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file stored or read as it is: name, size in bytes and hash of its content."""

    name: FileName
    bytes: Size
    sha256: Sha256


class Segment(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`len(sha256)` records of one shape in one layout, one after the other (the experts of a layer, say)."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$", max_length=255)]
    layout: str
    offset: Size
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=1024)]
    sha256: Annotated[tuple[Sha256, ...], Meta(min_length=1, max_length=65536)]

    @property
    def count(self) -> int:
        return len(self.sha256)

    @property
    def record_bytes(self) -> int:
        return record_bytes(self.tensors, self.layout)

    @property
    def bytes(self) -> int:
        return self.count * self.record_bytes


class PackFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One file of weights: segments that follow each other without holes."""

    name: FileName
    bytes: Size
    segments: Annotated[tuple[Segment, ...], Meta(min_length=1, max_length=1024)]


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the pack was quantized: bits of experts and dense matrices, group size, layouts written."""

    expert_bits: Literal[4, 8, 16]
    dense_bits: Literal[8, 16]
    group_size: GroupSize
    layouts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)]


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Everything a reader needs. `errors` maps SEGMENT.TENSOR to the relative RMS error of each record's matrix."""

    format: Literal["krasis-pack"]
    version: Annotated[int, Meta(ge=1)]
    root: Sha256
    tool: str
    settings: Settings
    model: dict[str, Any]
    source: tuple[FileHash, ...]
    extras: tuple[FileHash, ...]
    files: Annotated[tuple[PackFile, ...], Meta(min_length=1, max_length=65536)]
    errors: dict[str, tuple[Annotated[float, Meta(ge=0)], ...]]

    def segments(self) -> Iterator[tuple[PackFile, Segment]]:
        for file in self.files:
            for segment in file.segments:
                yield file, segment

    @property
    def weight_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + sum(extra.bytes for extra in self.extras)


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes, with `root` set to the hash of those bytes while `root` was all zeros."""
    body = msgspec.json.encode(msgspec.structs.replace(manifest, root=BLANK_ROOT))
    body = msgspec.json.format(body, indent=1)
    return body.replace(BLANK_ROOT.encode(), hashlib.sha256(body).hexdigest().encode(), 1)


def decode(raw: bytes, where: object) -> Manifest:
    """Parse and check a manifest. Raises InputError naming the first rule that does not hold."""

    def bad(what: str, expected: str = "", hint: str = "convert the model again") -> NoReturn:
        raise InputError(what, where=where, expected=expected, hint=hint)

    if len(raw) > MAX_BYTES:
        bad("manifest too large", f"at most {MAX_BYTES} bytes, found {len(raw)}")
    try:
        tree = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        bad(f"manifest is not strict JSON: {error}")
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        bad("not a krasis pack", f'"format": "{FORMAT}"')
    if isinstance(tree.get("version"), int) and tree["version"] > VERSION:
        bad(f"pack format version {tree['version']} is newer than this krasis", f"at most {VERSION}", "upgrade krasis")
    try:
        manifest = msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as error:
        bad(f"manifest breaks the schema: {error}")
    if hashlib.sha256(raw.replace(manifest.root.encode(), BLANK_ROOT.encode(), 1)).hexdigest() != manifest.root:
        bad("manifest does not match its root hash", "an unchanged manifest")
    try:
        _check_files(manifest)
        _check_errors(manifest)
    except ValueError as error:
        bad(str(error))
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return tree


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_files(manifest: Manifest) -> None:
    names = [file.name for file in manifest.files] + [extra.name for extra in manifest.extras] + [FILE_NAME]
    _refuse_duplicates("file", names)
    _refuse_duplicates("segment", [f"{s.name}@{s.layout}" for _, s in manifest.segments()])
    for file in manifest.files:
        end = 0
        for segment in file.segments:
            place = f"segment {segment.name}@{segment.layout} of {file.name}"
            if segment.layout not in ("plain", *manifest.settings.layouts):
                raise ValueError(f"{place} has a layout that the settings do not name")
            _refuse_duplicates(f"tensor in {place}", [tensor.name for tensor in segment.tensors])
            if segment.offset != end:
                fault = "overlaps what lies before it" if segment.offset < end else "leaves a hole before it"
                raise ValueError(f"{place} {fault}: offset {segment.offset}, expected {end}")
            try:
                end += segment.bytes
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
        if file.bytes != end:
            raise ValueError(f"{file.name} is stated as {file.bytes} bytes, its segments take {end}")


def _check_errors(manifest: Manifest) -> None:
    counts = {f"{s.name}.{t.name}": s.count for _, s in manifest.segments() for t in s.tensors if t.quantized}
    for name, count in counts.items():
        if len(manifest.errors.get(name, ())) != count:
            raise ValueError(f"errors of {name}: expected {count} figures, found {len(manifest.errors.get(name, ()))}")
    for name, figures in manifest.errors.items():
        if name not in counts:
            raise ValueError(f"errors name {name}, which is no quantized matrix")
        if not all(map(math.isfinite, figures)):
            raise ValueError(f"errors of {name} are not finite")


def _refuse_duplicates(kind: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{kind} {next(n for n in names if names.count(n) > 1)!r} is listed twice")
