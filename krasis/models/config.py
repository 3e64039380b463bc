"""Read a hub config.json strictly: every key is used, known to be harmless, or refused by name."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from krasis.errors import InputError

T = TypeVar("T", int, float, bool, str)
_INT_END = 1 << 31

# Keys that say how a model was trained, saved or served, not what it computes.
HARMLESS = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id", "initializer_range",
    "intermediate_size", "model_type", "output_router_logits", "pad_token_id", "pretraining_tp", "router_aux_loss_coef",
    "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


class Config:
    """A config.json being read. Call `take` for every key that matters, then `finish`."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._seen: set[str] = set()

    def take(self, kind: type[T], *names: str, default: T | None = None, least: int = 1) -> T:
        """The value under the first of `names` that is there.

        InputError where it is missing, of another type, an integer below `least` or a number not above zero.
        """
        self._seen.update(names)
        for name in names:
            value = self._tree.get(name)
            if value is None:
                continue
            if kind is float and type(value) is int and value < _INT_END:
                value = float(value)
            if type(value) is not kind:
                raise InputError(f"{name} is {value!r}", where="config.json", expected=f"of type {kind.__name__}")
            if expected := _out_of_range(value, least):
                raise InputError(f"{name} is {value!r}", where="config.json", expected=expected)
            return value
        if default is None:
            raise InputError(f"{names[0]} is missing", where="config.json", expected=f"a {kind.__name__}")
        return default

    def ints(self, name: str) -> tuple[int, ...]:
        """A list of indices or ids, empty where missing; a single one counts as a list."""
        self._seen.add(name)
        value = self._tree.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item < _INT_END for item in items):
            raise InputError(f"{name} is {value!r}", where="config.json", expected="integers, 0 or more, below 2^31")
        return tuple(items)

    def hold(self, rule: bool, name: str, expected: str) -> None:
        """Refuse the value of `name` where it contradicts others."""
        if not rule:
            raise InputError(f"{name} is {self._tree.get(name)!r}", where="config.json", expected=expected)

    def require(self, name: str, *supported: object) -> None:
        """Refuse a value that would change the result in a way this family does not implement. Missing is fine."""
        self._seen.add(name)
        value = self._tree.get(name)
        if value is not None and value not in supported:
            expected = " or ".join(map(repr, supported)) or "no such key"
            raise InputError(f"{name} is {value!r}", where="config.json", expected=expected)

    def rope_theta(self) -> float:
        """The base of plain rotary embedding, from the old top-level keys or the newer `rope_parameters`."""
        self._seen.update(("rope_theta", "rope_scaling", "rope_parameters"))
        nested = self._tree.get("rope_parameters") or self._tree.get("rope_scaling") or {}
        if not isinstance(nested, dict):
            raise InputError(f"rope_parameters is {nested!r}", where="config.json", expected="an object")
        rope = Config({"rope_theta": self._tree.get("rope_theta"), **nested})
        rope.require("rope_type", "default")
        rope.require("type", "default")
        theta = rope.take(float, "rope_theta")
        rope.finish()
        return theta

    def finish(self) -> None:
        """Refuse keys that nothing asked for, unless they are empty or known to change nothing."""
        for name, value in self._tree.items():
            if name not in self._seen | HARMLESS and not name.startswith("_") and value is not None:
                hint = "krasis can't tell whether it changes the result"
                raise InputError(
                    f"unknown key {name!r} = {value!r}", where="config.json", expected="keys it knows", hint=hint
                )


def _out_of_range(value: object, least: int) -> str:
    """What a number should be, empty where it is."""
    if type(value) is int and not least <= value < _INT_END:
        return f"{least} or more, below 2^31"
    if type(value) is float and not 0 < value < math.inf:
        return "above 0 and finite"
    return ""
