"""Codecs of stored matrices, one file each, found by the file's name."""

import functools
import importlib
import pkgutil
import typing

from krasis.errors import InputError
from krasis.quant.codec import Codec

_SHARED = {"cast", "codec", "feedback", "groups", "treesum"}


def names() -> list[str]:
    """The codecs krasis can write and read."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


@functools.cache
def get(name: str) -> Codec:
    """The codec called `name`. Raises InputError for one krasis does not know."""
    if name not in names():
        raise InputError(f"unknown codec {name!r}", expected=f"one of {', '.join(names())}")
    return typing.cast(Codec, importlib.import_module(f"{__name__}.{name}"))
