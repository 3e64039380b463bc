"""The manifest of a pack: a strict schema, parsed with every rule of formats/pack-v1.md checked."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
from msgspec import Meta

from krasis.errors import InputError
from krasis.pack import strict_json
from krasis.pack.record import GroupSize, TensorSpec, Word, record_bytes

FORMAT: Final = "krasis-pack"
VERSION: Final = 1
FILE_NAME = "manifest.json"
RESERVED = (FILE_NAME, "heat", "journal.jsonl")
MAX_BYTES = 16 << 20
BLANK_ROOT = "0" * 64

# Python's $ also matches before a last newline, hence (?!\n) after each; other dialects ignore it.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$(?!\n)", max_length=255)]
Printable = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)", max_length=255)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Size = Annotated[int, Meta(ge=0, lt=1 << 53)]


class Origin(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file that something was made from: its name, never opened by it again, size in bytes and hash."""

    name: Printable
    bytes: Size
    sha256: Sha256


class FileHash(Origin, forbid_unknown_fields=True, frozen=True):
    """A file stored as it is: name, size in bytes and hash of its content."""

    name: FileName


class Segment(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`len(sha256)` records of one shape in one layout, one after the other (the experts of a layer, say)."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$(?!\n)", max_length=255)]
    layout: Word
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


PresetName = Literal["fast", "balanced", "best"]


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the pack was quantized: bits of experts and dense matrices, group size, layouts written.

    Of INT4 experts: the preset, the codec and group size of w2 where they are its own, and the hash of the imatrix.
    """

    expert_bits: Literal[4, 8, 16]
    dense_bits: Literal[8, 16]
    group_size: GroupSize
    layouts: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=16)]
    preset: PresetName = "fast"
    w2_codec: Word | None = None
    w2_group_size: GroupSize | None = None
    imatrix: Sha256 | None = None


Error = Annotated[float, Meta(ge=0)]


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Everything a reader needs. `errors` maps SEGMENT.TENSOR to the relative RMS error of each record's matrix,
    `weighted_errors` to the same weighted by an imatrix, for matrices that one guided.
    """

    format: Literal["krasis-pack"]
    version: Literal[1]
    root: Sha256
    tool: Printable
    settings: Settings
    model: dict[str, Any]
    source: tuple[Origin, ...]
    extras: tuple[FileHash, ...]
    files: Annotated[tuple[PackFile, ...], Meta(min_length=1, max_length=65536)]
    errors: dict[str, tuple[Error, ...]]
    weighted_errors: dict[str, tuple[Error, ...]] = {}

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
        tree = strict_json.parse(raw)
    except ValueError as error:
        bad(f"manifest is not strict JSON: {error}")
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        bad("not a krasis pack", f'"format": "{FORMAT}"')
    if isinstance(tree.get("version"), int) and tree["version"] > VERSION:
        bad(f"pack format version {tree['version']} is newer than this krasis", f"at most {VERSION}", "upgrade krasis")
    try:
        # Parsed again: msgspec is stricter with numbers and escapes, and two parsers that agree are hard to fool.
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        bad(f"manifest breaks the schema: {error}")
    if hashlib.sha256(raw.replace(manifest.root.encode(), BLANK_ROOT.encode(), 1)).hexdigest() != manifest.root:
        bad("manifest does not match its root hash", "an unchanged manifest")
    try:
        _check_names(manifest)
        for file in manifest.files:
            _check_file(file, manifest.settings)
        _check_layouts_agree(manifest)
        _check_errors(manifest)
    except ValueError as error:
        bad(str(error))
    return manifest


def _check_names(manifest: Manifest) -> None:
    _refuse_duplicates("layout", manifest.settings.layouts)
    names = [file.name for file in manifest.files] + [extra.name for extra in manifest.extras]
    _refuse_duplicates("file", names)
    _refuse_duplicates("segment", [f"{s.name}@{s.layout}" for _, s in manifest.segments()])
    if taken := set(names).intersection(RESERVED):
        raise ValueError(f"file {min(taken)!r} has a name that packs reserve")


def _check_file(file: PackFile, settings: Settings) -> None:
    end = 0
    for segment in file.segments:
        place = f"segment {segment.name}@{segment.layout} of {file.name}"
        if segment.layout not in ("plain", *settings.layouts):
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


def _check_layouts_agree(manifest: Manifest) -> None:
    first: dict[str, Segment] = {}
    for _, segment in manifest.segments():
        twin = first.setdefault(segment.name, segment)
        if (segment.tensors, segment.count) != (twin.tensors, twin.count):
            raise ValueError(f"segment {segment.name} differs between {twin.layout} and {segment.layout}")


def _check_errors(manifest: Manifest) -> None:
    counts = {f"{s.name}.{t.name}": s.count for _, s in manifest.segments() for t in s.tensors if t.quantized}
    for name, count in counts.items():
        if len(manifest.errors.get(name, ())) != count:
            raise ValueError(f"errors of {name}: expected {count} figures, found {len(manifest.errors.get(name, ()))}")
    for name in (*manifest.errors, *manifest.weighted_errors):
        if name not in counts:
            raise ValueError(f"errors name {name!r}, which is no quantized matrix")
    for name, figures in manifest.weighted_errors.items():
        if len(figures) != counts[name]:
            raise ValueError(f"weighted errors of {name}: expected {counts[name]} figures, found {len(figures)}")


def _refuse_duplicates(kind: str, names: Iterable[str]) -> None:
    if (twice := strict_json.first_duplicate(names)) is not None:
        raise ValueError(f"{kind} {twice!r} is listed twice")
