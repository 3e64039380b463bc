"""A heat profile: routed tokens counted for every layer and expert, kept as zstd-compressed JSON."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
import numpy as np
import zstandard
from msgspec import Meta

from krasis.errors import InputError, UsageError
from krasis.heat.routing import Routing
from krasis.pack import strict_json
from krasis.pack.disk import disk_errors, write_synced
from krasis.pack.manifest import Origin, Printable, Sha256, Size

FORMAT: Final = "krasis-heat"
VERSION: Final = 1
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
    tool: Printable
    pack_root: Sha256
    corpus: tuple[Origin, ...]
    tokens: Size
    layers: tuple[LayerHeat, ...]

    def __post_init__(self) -> None:
        if any(a.layer >= b.layer for a, b in pairwise(self.layers)):
            raise ValueError("layers are not in ascending order")
        if any(max(layer.counts) > self.tokens for layer in self.layers):
            raise ValueError("an expert has more tokens than the profile")

    def routing(self) -> Routing:
        """All that was counted."""
        counts = {layer.layer: np.array(layer.counts, np.int64) for layer in self.layers}
        return Routing(self.tokens, counts, {layer: np.zeros(len(found)) for layer, found in counts.items()})

    def encode(self) -> bytes:
        return zstandard.compress(msgspec.json.encode(self))


def decode(raw: bytes, where: object) -> HeatProfile:
    """Parse a profile. Raises InputError where it is none, or is larger than 64 MiB."""

    def bad(what: object) -> NoReturn:
        raise InputError(f"not a heat profile: {what}", where=where, hint="make one with: krasis profile-heat")

    try:
        text = _decompress(raw)
        tree = strict_json.parse(text)
        if (version := _version(tree)) > VERSION:
            bad(f"format version {version} is newer than this krasis")
        return msgspec.json.decode(text, type=HeatProfile)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        bad(error)


def _decompress(raw: bytes) -> bytes:
    # zstandard trusts the size a frame states over max_output_size.
    if zstandard.frame_content_size(raw) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return zstandard.ZstdDecompressor().decompress(raw, max_output_size=MAX_BYTES, allow_extra_data=False)


def _version(tree: Any) -> int:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f'no "format": "{FORMAT}"')
    return tree["version"] if isinstance(tree.get("version"), int) else 0


def path_in(pack: Path, name: str) -> Path:
    """Where a pack keeps the profile `name`. Raises InputError for a name that is no plain file name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InputError(f"heat profile name {name!r}", expected="up to 64 letters, digits, - and _")
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
    """Write a profile whole or not at all. Raises UsageError where nothing can be written there."""
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, profile.encode())
    except OSError as error:
        raise UsageError(f"can't write the heat profile: {error.strerror}", where=path) from error
