"""A heat profile: what routers chose, for every layer and expert, kept as zstd-compressed JSON: formats/heat-v1.md."""

import math
import re
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
import numpy as np
import zstandard
from msgspec import Meta

from krasis.errors import InputError
from krasis.heat.routing import Routing
from krasis.heat.same_model import check_model
from krasis.pack import strict_json
from krasis.pack.disk import write_output
from krasis.pack.manifest import Manifest, Origin, Printable, Sha256, Size

FORMAT: Final = "krasis-heat"
VERSION: Final = 1
MAX_BYTES = 64 << 20
SUFFIX = ".json.zst"
EXPERTS = re.compile(r"layers\.(\d+)\.experts")

Phase = Literal["prefill", "decode"]
PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode")

Counts = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=65536)]
Weight = Annotated[float, Meta(ge=0)]
Weights = Annotated[tuple[Weight, ...], Meta(min_length=1, max_length=65536)]


class Text(Origin, forbid_unknown_fields=True, frozen=True):
    """A text that was run: `tokens` of it count in the profile, `held_out` do not."""

    tokens: Size
    held_out: Size


class Tokens(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tokens that were counted in each phase."""

    prefill: Size
    decode: Size


class Routed(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`counts[e]` tokens of a phase were routed to expert e, by routing weights that add up to `weights[e]`."""

    counts: Counts
    weights: Weights


class LayerHeat(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a layer's router chose in each phase."""

    layer: Size
    prefill: Routed
    decode: Routed


class HeatProfile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What routers chose for `tokens` of `corpus`, measured on the pack whose root hash is `pack_root`.

    The pack holds `model`. There is no root where profiles of several packs were merged.
    """

    format: Literal["krasis-heat"]
    version: Literal[1]
    tool: Printable
    pack_root: Sha256 | None
    model: dict[str, Any]
    corpus: tuple[Text, ...]
    tokens: Tokens
    layers: tuple[LayerHeat, ...]

    def __post_init__(self) -> None:
        if sum(text.tokens for text in self.corpus) != self.tokens.prefill + self.tokens.decode:
            raise ValueError("the texts do not add up to the tokens")
        if any(a.layer >= b.layer for a, b in pairwise(self.layers)):
            raise ValueError("layers are not in ascending order")
        for layer in self.layers:
            _check_layer(layer, self.tokens)

    @property
    def experts(self) -> dict[int, int]:
        """Layer -> experts that were counted."""
        return {layer.layer: len(layer.prefill.counts) for layer in self.layers}

    def routing(self, phase: Phase | None = None) -> Routing:
        """What was counted in a phase, in both without one."""
        if phase is None:
            return self.routing("prefill") + self.routing("decode")
        found: dict[int, Routed] = {layer.layer: getattr(layer, phase) for layer in self.layers}
        counts = {layer: np.array(routed.counts, np.int64) for layer, routed in found.items()}
        weights = {layer: np.array(routed.weights, np.float64) for layer, routed in found.items()}
        return Routing(getattr(self.tokens, phase), counts, weights)

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


def layers_of(prefill: Routing, decode: Routing) -> tuple[LayerHeat, ...]:
    """The layers of a profile of two phases of the same layers."""

    def routed(routing: Routing, layer: int) -> Routed:
        return Routed(tuple(routing.counts[layer].tolist()), tuple(routing.weights[layer].tolist()))

    return tuple(LayerHeat(layer, routed(prefill, layer), routed(decode, layer)) for layer in sorted(prefill.counts))


def merged(profiles: Sequence[HeatProfile], tool: str) -> HeatProfile:
    """One profile of all texts of one model's profiles, in order: tokens, counts and weights add up."""
    prefill, decode = (reduce(add, (profile.routing(phase) for profile in profiles)) for phase in PHASES)
    roots = {profile.pack_root for profile in profiles}
    return HeatProfile(
        format=FORMAT,
        version=VERSION,
        tool=tool,
        pack_root=roots.pop() if len(roots) == 1 else None,
        model=profiles[0].model,
        corpus=tuple(text for profile in profiles for text in profile.corpus),
        tokens=Tokens(prefill.tokens, decode.tokens),
        layers=layers_of(prefill, decode),
    )


def _check_layer(layer: LayerHeat, tokens: Tokens) -> None:
    for phase in PHASES:
        routed, counted = getattr(layer, phase), getattr(tokens, phase)
        if not len(routed.counts) == len(routed.weights) == len(layer.prefill.counts):
            raise ValueError(f"layer {layer.layer} has lists of different lengths")
        if max(routed.counts) > counted:
            raise ValueError("an expert has more tokens than the profile")
        if any(weight and not count for count, weight in zip(routed.counts, routed.weights, strict=True)):
            raise ValueError("an expert has weight and no tokens")
        if not all(map(math.isfinite, routed.weights)):
            raise ValueError("a weight is not finite")


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


def load(pack: Path, name: str, manifest: Manifest) -> HeatProfile:
    """The profile `name` of a pack. Raises InputError where there is none or it is of another model."""
    path = path_in(pack, name)
    if not path.is_file():
        have = ", ".join(names_in(pack)) or "none there; make one with: krasis profile-heat"
        raise InputError(f"no heat profile {name!r}", where=pack, expected=f"one of: {have}")
    return read(path, manifest)


def read(path: Path, manifest: Manifest) -> HeatProfile:
    """A profile, to be used with a pack. Raises InputError where it can't be read or is of another model."""
    try:
        profile = decode(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"can't read the heat profile: {error.strerror}", where=path) from error
    check_model("heat profile", profile.model, manifest.model, where=path, hint="make one with: krasis profile-heat")
    found = ((EXPERTS.fullmatch(segment.name), segment.count) for _, segment in manifest.segments())
    if (experts := {int(match[1]): count for match, count in found if match}) != profile.experts:
        expected = f"{len(experts)} layers with the pack's numbers of experts"
        raise InputError("the heat profile does not fit the model", where=path, expected=expected)
    return profile


def names_in(pack: Path) -> list[str]:
    """The profiles a pack keeps."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (pack / "heat").glob(f"*{SUFFIX}"))


def save(profile: HeatProfile, path: Path) -> None:
    """Write a profile whole or not at all. Raises UsageError where nothing can be written there."""
    write_output(path, profile.encode(), "heat profile")
