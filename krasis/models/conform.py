"""A pack must hold what its model spec asks for: the forward and the kernels take shapes on trust."""

from typing import Any

import msgspec

from krasis import models
from krasis.errors import InputError
from krasis.models.family import Family, ModelSpec
from krasis.models.weight import Group
from krasis.pack.manifest import Manifest, Segment
from krasis.pack.reader import Pack


def read_spec(pack: Pack) -> ModelSpec:
    """The normalized model spec that the pack carries."""
    return spec_of(pack.manifest, pack.path)


def spec_of(manifest: Manifest, where: object) -> ModelSpec:
    """The normalized model spec of a manifest. Raises InputError where it is none."""
    tree: dict[str, Any] = manifest.model
    family = models.get(str(tree.get("model_type")))
    try:
        return msgspec.convert(tree, family.Spec)
    except msgspec.ValidationError as error:
        raise InputError(f"the pack's model spec is not valid: {error}", where=where) from error


def check_pack(pack: Pack, family: Family, spec: ModelSpec) -> None:
    """Raises InputError for a segment that is missing, or holds other tensors or another number of records."""
    check_manifest(pack.manifest, family, spec, pack.path)


def check_manifest(manifest: Manifest, family: Family, spec: ModelSpec, where: object) -> None:
    """`check_pack` of a manifest alone."""
    found: dict[str, list[Segment]] = {}
    for _, segment in manifest.segments():
        found.setdefault(segment.name, []).append(segment)
    for _, groups in family.files(spec):
        for group in groups:
            if group.name not in found:
                raise InputError(f"the pack lacks {group.name}", where=where, expected="what its model spec asks for")
            for segment in found[group.name]:
                _check_segment(group, segment, where)


def _check_segment(group: Group, segment: Segment, where: object) -> None:
    expected = [(weight.name, weight.stacked, len(weight.sources)) for weight in group.records[0]]
    # An unquantized tensor is not padded, so nothing says how many parts it has.
    found = [
        (tensor.name, tensor.shape, tensor.parts if tensor.quantized else parts)
        for tensor, (_, _, parts) in zip(segment.tensors, expected, strict=False)
    ]
    if found != expected or len(segment.tensors) != len(expected) or segment.count != len(group.records):
        raise InputError(
            f"{group.name}@{segment.layout} is not what the pack's model spec asks for",
            where=where,
            expected=f"{len(group.records)} records of {expected}",
            hint="convert the model again",
        )
