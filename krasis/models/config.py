"""Read a hub config.json strictly: every key is used, known to be harmless, or refused by name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from krasis.errors import InputError
from krasis.models.blocks.rope import RopeSpec, Yarn, mscale
from krasis.models.family import LEAST_FLOAT, MOST_FLOAT, MOST_LAYERS, MOST_PARTS, MOST_WIDTH

T = TypeVar("T", int, float, bool, str)
_INT_END = 1 << 31

# Keys whose number of things is made, or would be, before a checkpoint proves that it has them.
MOST = {
    "num_hidden_layers": MOST_LAYERS,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), MOST_PARTS),
    **dict.fromkeys(("num_attention_heads", "linear_num_key_heads", "linear_num_value_heads"), MOST_PARTS),
    **dict.fromkeys(("hidden_size", "head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), MOST_WIDTH),
    "kv_lora_rank": MOST_WIDTH,
}

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
        """The value under whichever of `names` is there.

        InputError where it is missing, of another type, an integer below `least` or above the name's MOST, a number not
        between 1e-30 and 1e30, and where two names differ.
        """
        self._seen.update(names)
        given = [name for name in names if self._tree.get(name) is not None]
        if not given:
            if default is None:
                raise InputError(f"{names[0]} is missing", where="config.json", expected=f"of type {kind.__name__}")
            return default
        value = self._tree[given[0]]
        for name in given[1:]:
            self.hold(self._tree[name] == value, name, f"{value!r}, as {given[0]}")
        if kind is float and type(value) is int and abs(value) < _INT_END:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{given[0]} is {value!r}", where="config.json", expected=f"of type {kind.__name__}")
        if expected := _out_of_range(value, least, MOST.get(given[0], _INT_END - 1)):
            raise InputError(f"{given[0]} is {value!r}", where="config.json", expected=expected)
        return value

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

    def demand(self, name: str, value: object) -> None:
        """Refuse any other value, and a missing one."""
        self.require(name, value)
        self.hold(self._tree.get(name) is not None, name, repr(value))

    def object(self, name: str) -> "Config":
        """The object under `name`, to be read and finished by itself."""
        self._seen.add(name)
        value = self._tree.get(name)
        if not isinstance(value, dict):
            raise InputError(f"{name} is {value!r}", where="config.json", expected="an object")
        return Config(value)

    def strings(self, name: str, *supported: str) -> tuple[str, ...]:
        """A list of `supported` words, empty where missing."""
        self._seen.add(name)
        value = self._tree.get(name)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(item in supported for item in items):
            raise InputError(f"{name} is {value!r}", where="config.json", expected=f"a list of {', '.join(supported)}")
        return tuple(items)

    def common(self) -> dict[str, Any]:
        """The fields of `ModelSpec`."""
        return {
            "hidden_size": self.take(int, "hidden_size"),
            "num_layers": self.take(int, "num_hidden_layers"),
            "vocab_size": self.take(int, "vocab_size"),
            "max_positions": self.take(int, "max_position_embeddings"),
            "norm_eps": self.take(float, "rms_norm_eps"),
            "eos_token_ids": self.ints("eos_token_id"),
            "tied_embeddings": self.take(bool, "tie_word_embeddings", default=False),
        }

    def heads(self) -> tuple[int, int, int]:
        """(query heads, key and value heads, dimensions of one) of grouped-query attention."""
        heads = self.take(int, "num_attention_heads")
        kv_heads = self.take(int, "num_key_value_heads", default=heads)
        head_dim = self.take(int, "head_dim", default=self.take(int, "hidden_size") // heads)
        self.hold(heads % kv_heads == 0, "num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
        self.hold(head_dim > 0 and head_dim % 2 == 0, "head_dim", "even, for rotary embedding")
        return heads, kv_heads, head_dim

    def experts(self, *names: str) -> tuple[int, int]:
        """(routed experts, under whichever of `names` is there; how many of them a token uses)."""
        experts = self.take(int, *names)
        chosen = self.take(int, "num_experts_per_tok", "experts_per_token")
        self.hold(chosen <= experts, "num_experts_per_tok", f"at most {experts} experts")
        return experts, chosen

    def rope(self, partial: float | None = None) -> RopeSpec:
        """Rotary embedding, from the old top-level keys or the newer `rope_parameters`.

        `partial` is the share of dimensions that turn unless told; None where a family always turns all.
        """
        self._seen.update(("rope_theta", "rope_scaling", "rope_parameters"))
        nested = self._tree.get("rope_parameters") or self._tree.get("rope_scaling") or {}
        if not isinstance(nested, dict):
            raise InputError(f"rope_parameters is {nested!r}", where="config.json", expected="an object")
        outer = {"rope_theta": self._tree.get("rope_theta")}
        if partial is not None:
            self._seen.add("partial_rotary_factor")
            outer["partial_rotary_factor"] = self._tree.get("partial_rotary_factor")
        for name, value in outer.items():
            self.hold(value is None or nested.get(name) in (None, value), name, f"{nested.get(name)!r}, as nested")
        rope = Config(outer | nested)
        theta = rope.take(float, "rope_theta")
        rope.hold(theta > 1, "rope_theta", "above 1")
        share = 1.0 if partial is None else rope.take(float, "partial_rotary_factor", default=partial)
        rope.hold(share <= 1, "partial_rotary_factor", "at most 1")
        yarn = _yarn(rope) if "yarn" in (nested.get("rope_type"), nested.get("type")) else None
        rope.require("rope_type", "yarn" if yarn else "default")
        rope.require("type", "yarn" if yarn else "default")
        rope.finish()
        return RopeSpec(theta=theta, partial=share, yarn=yarn)

    def skip(self, name: str) -> None:
        """Take note of a key that changes nothing in this family, whatever its value."""
        self._seen.add(name)

    def finish(self) -> None:
        """Refuse keys that nothing asked for, unless they are empty or known to change nothing."""
        for name, value in self._tree.items():
            if name not in self._seen | HARMLESS and not name.startswith("_") and value is not None:
                hint = "krasis can't tell whether it changes the result"
                raise InputError(
                    f"unknown key {name!r} = {value!r}", where="config.json", expected="keys it knows", hint=hint
                )


def _out_of_range(value: object, least: int, most: int) -> str:
    """What a number should be, empty where it is."""
    if type(value) is int and not least <= value <= most:
        return f"{least} to {most}"
    if type(value) is float and not LEAST_FLOAT <= value <= MOST_FLOAT:
        return f"{LEAST_FLOAT} to {MOST_FLOAT}"
    return ""


def _yarn(rope: Config) -> Yarn:
    factor = rope.take(float, "factor")
    # DeepSeek gives two weights: their quotient sharpens the angles, the second MLA's softmax, twice.
    weight, all_dim = (rope.take(float, name, default=0.0) for name in ("mscale", "mscale_all_dim"))
    both = mscale(factor, weight) / mscale(factor, all_dim) if weight and all_dim else mscale(factor)
    return Yarn(
        factor=factor,
        original_positions=rope.take(int, "original_max_position_embeddings"),
        beta_fast=rope.take(float, "beta_fast", default=32.0),
        beta_slow=rope.take(float, "beta_slow", default=1.0),
        truncate=rope.take(bool, "truncate", default=True),
        attention_factor=rope.take(float, "attention_factor", default=both),
        softmax_factor=mscale(factor, all_dim) ** 2 if all_dim else 1.0,
    )
