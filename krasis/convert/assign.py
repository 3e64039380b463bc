"""Decide for every weight its codec, padded shape and layouts: the pack's shape, before any weight is read."""

from collections.abc import Callable

import torch

from krasis import quant
from krasis.layout.marlin import padded_shape
from krasis.models.family import Group, Weight
from krasis.pack.manifest import Settings
from krasis.pack.record import GroupSize, TensorSpec
from krasis.pack.writer import SegmentPlan

PLAIN = "plain"


def codec_of(group: Group, settings: Settings) -> str | None:
    """The codec of a group's matrices, or None where each tensor keeps its own precision."""
    if group.kind == "keep":
        return None
    bits = settings.expert_bits if group.kind == "expert" else settings.dense_bits
    return {4: "int4", 8: "int8", 16: "bf16"}[bits]


def plan_group(group: Group, settings: Settings, dtype: Callable[[str], torch.dtype]) -> list[SegmentPlan]:
    """The segments a group becomes: one per layout where it is quantized, else one plain.

    `dtype` gives the stored dtype of a checkpoint tensor.
    """
    codec = codec_of(group, settings)
    weights = group.records[0]
    if codec is None or not quant.get(codec).QUANTIZED:
        specs = tuple(_plain(weight, codec or _kept(dtype(weight.sources[0]))) for weight in weights)
        return [SegmentPlan(group.name, PLAIN, specs, len(group.records))]
    specs = _quantized(weights, codec, settings.group_size)
    return [SegmentPlan(group.name, layout, specs, len(group.records)) for layout in settings.layouts]


def _kept(dtype: torch.dtype) -> str:
    # float16 has more mantissa than bfloat16, so it is kept as float32.
    return "bf16" if dtype == torch.bfloat16 else "f32"


def _plain(weight: Weight, codec: str) -> TensorSpec:
    return TensorSpec(weight.name, codec, weight.stacked, weight.stacked)


def _quantized(weights: tuple[Weight, ...], codec: str, group_size: GroupSize) -> tuple[TensorSpec, ...]:
    padded: dict[str, tuple[int, int]] = {}
    # A matrix that feeds another is padded after it: its rows must fill the other's padded input.
    for weight in sorted(weights, key=lambda weight: bool(weight.feeds)):
        rows, k = weight.shape
        parts = len(weight.sources)
        if weight.feeds:
            rows = padded[weight.feeds][1]
        padded_k, padded_n = padded_shape(k, rows * parts, group_size)
        padded[weight.name] = (padded_n, padded_k)
    return tuple(
        TensorSpec(weight.name, codec, weight.stacked, padded[weight.name], group_size, len(weight.sources))
        for weight in weights
    )
