"""A heat profile: routed tokens counted for every layer and expert, kept as zstd-compressed JSON."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import zstandard
from msgspec import Meta

from krasis.errors import InputError
from krasis.pack.manifest import FileHash, Sha256, Size

VERSION: Literal[1] = 1
MAX_BYTES = 64 << 20
SUFFIX = ".json.zst"

Counts = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=65536)]


class LayerHeat(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`counts[e]` tokens of the profile were routed to expert e of `layer`."""

    layer: Size
    counts: Counts


class HeatProfile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Counts over `tokens` tokens of the texts in `corpus`, made with the pack whose root hash is `pack_root`."""

    format: Literal["krasis-heat"]
    version: Literal[1]
    tool: str
    pack_root: Sha256
    corpus: tuple[FileHash, ...]
    tokens: Size
    layers: tuple[LayerHeat, ...]

    def encode(self) -> bytes:
        return zstandard.compress(msgspec.json.encode(self))


def decode(raw: bytes, where: object) -> HeatProfile:
    """Parse a profile. Raises InputError where it is none, or is larger than 64 MiB."""
    try:
        text = zstandard.ZstdDecompressor().decompress(raw, max_output_size=MAX_BYTES)
        return msgspec.json.decode(text, type=HeatProfile)
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise InputError(
            f"not a heat profile: {error}", where=where, hint="make one with: krasis profile-heat"
        ) from error


def path_in(pack: Path, name: str) -> Path:
    """Where a pack keeps the profile `name`. Raises InputError for a name that is no plain file name."""
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise InputError(f"heat profile name {name!r}", expected="letters, digits, - and _")
    return pack / "heat" / f"{name}{SUFFIX}"


def load(pack: Path, name: str, root: str) -> HeatProfile:
    """The profile `name` of a pack. Raises InputError where there is none or it belongs to another pack."""
    path = path_in(pack, name)
    if not path.is_file():
        have = ", ".join(names_in(pack)) or "none there; make one with: krasis profile-heat"
        raise InputError(f"no heat profile {name!r}", where=pack, expected=f"one of: {have}")
    profile = decode(path.read_bytes(), path)
    if profile.pack_root != root:
        raise InputError("the heat profile is of another pack", where=path, hint="make it again with profile-heat")
    return profile


def names_in(pack: Path) -> list[str]:
    """The profiles a pack keeps."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (pack / "heat").glob(f"*{SUFFIX}"))


def save(profile: HeatProfile, path: Path) -> None:
    """Write a profile whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_bytes(profile.encode())
    scratch.replace(path)
