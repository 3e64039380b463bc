"""Whether what was measured on one pack may be used with another: of the same model, however it is encoded."""

from collections.abc import Mapping
from typing import Any

import msgspec

from krasis.errors import InputError


def check_model(kind: str, found: Mapping[str, Any], model: Mapping[str, Any], *, where: object, hint: str) -> None:
    """Raises InputError where `found`, the model that a file of this kind is of, is not `model`; both normalized."""
    # As JSON, which knows no tuples.
    mine = msgspec.json.decode(msgspec.json.encode(model))
    if differing := sorted(key for key in mine.keys() | found.keys() if mine.get(key) != found.get(key)):
        key = "model_type" if "model_type" in differing else differing[0]
        what = f"the {kind} is of another model: its {key} is {found.get(key)!r}"
        raise InputError(what, where=where, expected=repr(mine.get(key)), hint=hint)
