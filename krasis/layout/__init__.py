"""Byte orders of quantized matrices, one file each, found by the file's name."""

import functools
import importlib
import pkgutil
from typing import cast

from krasis.errors import InputError
from krasis.layout.protocol import Layout

_SHARED = {"arrays", "check", "protocol"}


def names() -> list[str]:
    """The layouts krasis can write and read."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


@functools.cache
def get(name: str) -> Layout:
    """The layout called `name`. Raises InputError for one krasis does not know."""
    if name not in names():
        raise InputError(f"unknown layout {name!r}", expected=f"one of {', '.join(names())}")
    return cast(Layout, importlib.import_module(f"{__name__}.{name}"))
