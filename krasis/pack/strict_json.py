"""JSON that means one thing to every parser."""

import json
from collections.abc import Iterable
from typing import Any, NoReturn


def parse(raw: bytes) -> Any:
    """UTF-8 JSON whose objects name a key once. Raises ValueError for anything else, nesting too deep included."""
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError(f"duplicate key {first_duplicate(name for name, _ in pairs)!r}")
    return tree


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
