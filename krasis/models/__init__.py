"""Model families, one file each, named after the `model_type` of the hub's config.json and found by that name."""

import importlib
import pkgutil
from typing import cast

from krasis.errors import InputError
from krasis.models.family import Family, ModelSpec

_SHARED = {"blocks", "config", "conform", "family", "ops", "state", "weight"}


def names() -> list[str]:
    """The families krasis can convert and run."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def get(model_type: str) -> Family:
    """The family of a `model_type`. Raises InputError for one krasis does not know."""
    if model_type not in names():
        raise InputError(f"unknown model family {model_type!r}", expected=f"one of {', '.join(names())}")
    return cast(Family, importlib.import_module(f"{__name__}.{model_type}"))


def of(spec: ModelSpec) -> Family:
    """The family that a spec is of."""
    return get(str(spec.__struct_config__.tag))
