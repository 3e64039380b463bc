"""Decide for every weight its codec, padded shape and layouts: the pack's shape, before any weight is read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from krasis import quant
from krasis.layout.marlin import padded_shape
from krasis.models.weight import Group, Source, Weight
from krasis.pack.file_writer import SegmentPlan
from krasis.pack.manifest import Settings
from krasis.pack.record import GroupSize, TensorSpec
from krasis.quant import int4, int8, mxfp4

PLAIN = "plain"
_BITS = {4: "int4", 8: "int8", 16: "bf16"}


@dataclass(frozen=True)
class Choice:
    """How the matrices of a group are stored. `codec` is None where each tensor keeps its own precision.

    `w2` is another choice for the matrix of that name.
    """

    codec: str | None
    group_size: GroupSize
    w2: "Choice | None" = None

    def of(self, name: str) -> "Choice":
        """The choice for one matrix."""
        return self.w2 if name == "w2" and self.w2 is not None else self


def choose(group: Group, settings: Settings, expert_codec: str | None, kept_as: str | None) -> Choice:
    """The codec and group size of a group: by bits, but experts are `kept_as` their checkpoint has them at these bits.

    `expert_codec` overrides both. Experts that are MXFP4 in the checkpoint are exact in INT8 in groups of 32.
    """
    if group.kind == "keep":
        return Choice(None, settings.group_size)
    if group.kind == "dense":
        return Choice(_BITS[settings.dense_bits], settings.group_size)
    kept = kept_as if kept_as and settings.expert_bits == quant.get(kept_as).BITS else None
    codec = expert_codec or kept or _BITS[settings.expert_bits]
    exact = codec == mxfp4.NAME or (kept_as == mxfp4.NAME and codec == int8.NAME)
    if codec == int4.NAME:
        w2 = Choice(settings.w2_codec or codec, settings.w2_group_size or settings.group_size)
        return Choice(codec, settings.group_size, w2)
    return Choice(codec, 32 if exact else settings.group_size)


def plan_group(
    group: Group, choice: Choice, layouts: tuple[str, ...], dtype: Callable[[Source], torch.dtype]
) -> list[SegmentPlan]:
    """The segments a group becomes: one per layout where it is quantized, else one plain.

    `dtype` gives the stored dtype of an unquantized source.
    """
    weights = group.records[0]
    if choice.codec is None or not quant.get(choice.codec).QUANTIZED:
        specs = tuple(_plain(weight, _kept_codec(weight, choice.codec, dtype)) for weight in weights)
        return [SegmentPlan(group.name, PLAIN, specs, len(group.records))]
    padded = _padded(weights, choice)
    specs = tuple(
        _quantized(w, choice.of(w.name), padded[w.name])
        if len(w.shape) == 2
        else TensorSpec(w.name, _kept(dtype(w.sources[0])), w.stacked, (padded[w.bias_of][0],), parts=len(w.sources))
        for w in weights
    )
    return [SegmentPlan(group.name, layout, specs, len(group.records)) for layout in layouts]


def _kept_codec(weight: Weight, codec: str | None, dtype: Callable[[Source], torch.dtype]) -> str:
    return codec if codec and len(weight.shape) == 2 else _kept(dtype(weight.sources[0]))


def _kept(dtype: torch.dtype) -> str:
    # float16 has more mantissa than bfloat16, so it is kept as float32.
    return "bf16" if dtype == torch.bfloat16 else "f32"


def _quantized(weight: Weight, choice: Choice, padded: tuple[int, int]) -> TensorSpec:
    assert choice.codec is not None
    return TensorSpec(weight.name, choice.codec, weight.stacked, padded, choice.group_size, len(weight.sources))


def _plain(weight: Weight, codec: str) -> TensorSpec:
    return TensorSpec(weight.name, codec, weight.stacked, weight.stacked)


def _padded(weights: tuple[Weight, ...], choice: Choice) -> dict[str, tuple[int, int]]:
    """The padded [N, K] of every matrix."""
    padded: dict[str, tuple[int, int]] = {}
    # A matrix that feeds another is padded after it: its rows must fill the other's padded input.
    for weight in sorted(weights, key=lambda weight: bool(weight.feeds)):
        if len(weight.shape) != 2:
            continue
        rows, k = weight.shape
        parts = len(weight.sources)
        if weight.feeds:
            rows = padded[weight.feeds][1]
        padded_k, padded_n = padded_shape(k, rows * parts, choice.of(weight.name).group_size)
        padded[weight.name] = (padded_n, padded_k)
    return padded
