"""A hub checkpoint: config, tokenizer files and the tensors of its shards, read one at a time."""

import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from krasis.convert import encodings
from krasis.convert.encodings.plain import DTYPES
from krasis.convert.encodings.stored import Coded, Encoding, Stored
from krasis.convert.store import FolderStore, Store
from krasis.errors import InputError
from krasis.models.weight import Source
from krasis.pack import strict_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

MOST_TENSORS = 1 << 20
MOST_NAME = 255


HEADERS_AT_ONCE = 8
"""Headers that are read at a time, as each may have a long way to come."""


class Checkpoint:
    """A checkpoint in a store. Raises InputError where it is not one, or names files outside itself.

    `headers` has what every tensor says of itself; no weight is read before `load`, which any thread may call.
    """

    def __init__(self, store: Store | Path) -> None:
        self.store: Store = FolderStore(store) if isinstance(store, Path) else store
        self.where = self.store.where
        self.config = self._need("config.json", "a hub checkpoint with safetensors")
        listed = self._listed()
        self.shards = sorted(set(listed.values())) if listed is not None else [SINGLE]
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            stored = dict(zip(self.shards, pool.map(self.store.headers, self.shards), strict=True))
        self.shard_of = dict.fromkeys(stored[SINGLE], SINGLE) if listed is None else listed
        self._check_names()
        for name, shard in self.shard_of.items():
            if name not in stored[shard]:
                raise InputError(f"can't read {name}: the shard lacks it", where=f"{self.where}/{shard}")
        self.headers = {name: stored[shard][name] for name, shard in self.shard_of.items()}
        self._encodings = encodings.of(self.config)
        self._open: dict[str, Any] = {}
        self._opening = threading.Lock()
        # Neighbours often take their rows from one tensor; every thread keeps the last it decoded.
        self._last = threading.local()

    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens that generation_config.json names, none where it is silent."""
        generation = self._json("generation_config.json") or {}
        found = generation.get("eos_token_id")
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise InputError(f"eos_token_id is {found!r}", where="generation_config.json", expected="token ids")
        return tuple(ids)

    def tokenizer_files(self) -> dict[str, bytes]:
        found = ((name, self.store.small(name)) for name in TOKENIZER_FILES)
        return {name: content for name, content in found if content is not None}

    def tensors(self, source: Source) -> tuple[str, ...]:
        """The tensors that hold a source, however they are encoded; its own name where there are none."""
        return self._encoding(source).names(source.name, self.headers) or (source.name,)

    def check(self, source: Source, shape: tuple[int, ...]) -> None:
        """Raises InputError where a source's tensors do not fit together, or give rows of another shape."""
        try:
            whole = self._encoding(source).shape(source, self.headers)
            rows = _pick(torch.empty(whole, device="meta"), source)
        except InputError as error:
            raise InputError(str(error), where=self.where) from error
        found = tuple(rows.T.shape if source.turned else rows.shape)
        if found != shape:
            raise InputError(f"{source.name} gives {list(found)}", where=self.where, expected=f"{list(shape)}")

    def dtype(self, source: Source) -> torch.dtype:
        """The dtype of an unquantized source; bfloat16 for others, whose numbers have fewer bits than that."""
        return DTYPES.get(self.headers[self.tensors(source)[0]].dtype, torch.bfloat16)

    def kept_as(self, source: Source) -> str | None:
        """The codec that a source keeps by its encoding unless told otherwise."""
        return self._encoding(source).kept_as

    def load(self, source: Source) -> Stored:
        """The rows that a source takes, which must have passed `check`. Raises InputError where they can't be read."""
        return _rows(self._whole(source), source)

    def shards_of(self, source: Source) -> set[str]:
        """The shards that hold a source's tensors."""
        return {self.shard_of[name] for name in self.tensors(source)}

    def close(self, shard: str) -> None:
        """Let go of a shard's mapping; a later `load` opens it again."""
        with self._opening:
            self._open.pop(shard, None)

    def _whole(self, source: Source) -> Stored:
        key = source.name, source.index, source.columns
        last: tuple[object, Stored] | None = getattr(self._last, "found", None)
        if last is None or last[0] != key:
            try:
                last = key, self._encoding(source).read(self._read, source)
            except InputError as error:
                raise InputError(f"{source.name}: {error}", where=self.where) from error
            self._last.found = last
        return last[1]

    def _encoding(self, source: Source) -> Encoding:
        held = (found for found in self._encodings if found.names(source.name, self.headers))
        return next(held, self._encodings[-1])

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        shard = self.shard_of[name]
        try:
            opened = self._shard(shard)
            found: torch.Tensor = opened.get_tensor(name) if index is None else opened.get_slice(name)[index]
        except SafetensorError as error:
            raise InputError(f"can't read {name}: {error}", where=f"{self.where}/{shard}") from error
        return found

    def _shard(self, name: str) -> Any:
        with self._opening:
            if name not in self._open:
                path = self.store.fetch(name, lambda amount: None)
                try:
                    self._open[name] = safe_open(path, framework="pt")
                except (SafetensorError, OSError) as error:
                    hint = "download it again"
                    raise InputError(f"not a safetensors file: {error}", where=path, hint=hint) from error
            return self._open[name]

    def _listed(self) -> dict[str, str] | None:
        """Tensor -> shard as the index has it, None where there is no index."""
        index = self._json(INDEX)
        if index is None:
            return None
        listed = index.get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(map(_plain_name, listed.values())):
            raise InputError(
                "no valid weight_map", where=f"{self.where}/{INDEX}", expected="tensor -> file in the folder"
            )
        return listed

    def _check_names(self) -> None:
        if len(self.shard_of) > MOST_TENSORS:
            raise InputError(f"{len(self.shard_of)} tensors", where=self.where, expected=f"at most {MOST_TENSORS}")
        for name in self.shard_of:
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name, re.ASCII) or len(name) > MOST_NAME:
                expected = f"up to {MOST_NAME} letters, digits, _ and -, and single dots between them"
                raise InputError(f"{name[:MOST_NAME]!r} is no name of a tensor", where=self.where, expected=expected)

    def _need(self, name: str, expected: str) -> Mapping[str, Any]:
        found = self._json(name)
        if found is None:
            raise InputError(f"no {name}", where=self.where, expected=expected)
        return found

    def _json(self, name: str) -> Mapping[str, Any] | None:
        content = self.store.small(name)
        if content is None:
            return None
        try:
            tree = strict_json.parse(content)
        except ValueError as error:
            raise InputError(f"not JSON: {error}", where=f"{self.where}/{name}") from error
        if not isinstance(tree, dict):
            raise InputError("not a JSON object", where=f"{self.where}/{name}")
        return tree


def _plain_name(name: object) -> bool:
    plain = isinstance(name, str) and len(name) <= MOST_NAME and re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII)
    return bool(plain)


def _rows(stored: Stored, source: Source) -> Stored:
    if isinstance(stored, Coded):
        if source.turned:
            return _rows(stored.values(), source)
        return Coded(stored.codec, _pick(stored.codes, source), _pick(stored.scales, source))
    picked = _pick(stored, source)
    return picked.T if source.turned else picked


def _pick(rows: torch.Tensor, source: Source) -> torch.Tensor:
    if source.runs == 1 and source.first == 0 and source.last is None:
        return rows
    if len(rows) % source.runs:
        raise InputError(f"{source.name} has {len(rows)} rows", expected=f"{source.runs} equal runs")
    return rows.reshape(source.runs, -1, *rows.shape[1:])[:, source.first : source.last].flatten(0, 1)
