"""A hub checkpoint: config, tokenizer files and safetensors shards, read one tensor at a time."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from krasis.convert import encodings
from krasis.convert.encodings.plain import DTYPES
from krasis.convert.encodings.stored import Coded, Encoding, Header, Stored
from krasis.errors import InputError
from krasis.models.weight import Source
from krasis.pack.manifest import FileHash

T = TypeVar("T")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def fetch(source: str, revision: str | None) -> Path:
    """The folder of `source`: a local one, or a hub id downloaded to the hub's cache."""
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise InputError("--revision names a state of a hub model", where=source, expected="a hub id, not a folder")
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(
            "no such checkpoint", where=source, expected="a folder, or a hub id such as Qwen/Qwen3-30B-A3B"
        )
    # Importing the hub client takes longer than converting a small folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja"]
        # Some hub models carry a second copy in a folder.
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, ignore_patterns="*/*"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "check the name and the network, or give a local folder"
        raise InputError("can't fetch the model", where=source, expected=reason, hint=hint) from error


class Checkpoint:
    """A checkpoint folder. Raises InputError where it is not one, or names files outside itself.

    `headers` has what every tensor says of itself; no weight is read before `load`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._json("config.json")
        self.shard_of = self._shards()
        self._open: dict[str, Any] = {}
        self.headers = {name: self._header(name) for name in self.shard_of}
        self._encodings = encodings.of(self.config)
        # Neighbours often take their rows from one tensor.
        self._last: tuple[tuple[str, int | None, bool], Stored] | None = None

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.shard_of.values()))

    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens that generation_config.json names, none where it is silent."""
        if not (self.folder / "generation_config.json").is_file():
            return ()
        found = self._json("generation_config.json").get("eos_token_id")
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise InputError(f"eos_token_id is {found!r}", where="generation_config.json", expected="token ids")
        return tuple(ids)

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = (self.folder / name for name in TOKENIZER_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def tensors(self, source: Source) -> tuple[str, ...]:
        """The tensors that hold a source, however they are encoded; its own name where there are none."""
        return self._encoding(source).names(source.name, self.headers) or (source.name,)

    def check(self, source: Source, shape: tuple[int, ...]) -> None:
        """Raises InputError where a source's tensors do not fit together, or give rows of another shape."""
        try:
            whole = self._encoding(source).shape(source, self.headers)
            rows = _pick(torch.empty(whole, device="meta"), source)
        except InputError as error:
            raise InputError(str(error), where=self.folder) from error
        found = tuple(rows.T.shape if source.turned else rows.shape)
        if found != shape:
            raise InputError(f"{source.name} gives {list(found)}", where=self.folder, expected=f"{list(shape)}")

    def dtype(self, source: Source) -> torch.dtype:
        """The dtype of an unquantized source; bfloat16 for others, whose numbers have fewer bits than that."""
        return DTYPES.get(self.headers[self.tensors(source)[0]].dtype, torch.bfloat16)

    def kept_as(self, source: Source) -> str | None:
        """The codec that a source keeps by its encoding unless told otherwise."""
        return self._encoding(source).kept_as

    def load(self, source: Source) -> Stored:
        """The rows that a source takes, which must have passed `check`. Raises InputError where they can't be read."""
        return _rows(self._whole(source), source)

    def _whole(self, source: Source) -> Stored:
        key = source.name, source.index, source.columns
        if self._last is None or self._last[0] != key:
            try:
                self._last = key, self._encoding(source).read(self._read, source)
            except InputError as error:
                raise InputError(f"{source.name}: {error}", where=self.folder) from error
        return self._last[1]

    def _encoding(self, source: Source) -> Encoding:
        held = (found for found in self._encodings if found.names(source.name, self.headers))
        return next(held, self._encodings[-1])

    def _header(self, name: str) -> Header:
        found = self._tensor(name, lambda shard: shard.get_slice(name))
        return Header(found.get_dtype(), tuple(found.get_shape()))

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        def read(shard: Any) -> torch.Tensor:
            found: torch.Tensor = shard.get_tensor(name) if index is None else shard.get_slice(name)[index]
            return found

        return self._tensor(name, read)

    def hashes(self, progress: Callable[[int], None]) -> list[FileHash]:
        """The size and hash of every shard; `progress` is called with bytes as they are read."""
        return [self._hash(name, progress) for name in self.shards]

    def _hash(self, name: str, progress: Callable[[int], None]) -> FileHash:
        path, digest = self.folder / name, hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
                progress(len(chunk))
        return FileHash(name, path.stat().st_size, digest.hexdigest())

    def _tensor(self, name: str, read: Callable[[Any], T]) -> T:
        try:
            return read(self._shard(self.shard_of[name]))
        except SafetensorError as error:
            raise InputError(f"can't read {name}: {error}", where=self.folder / self.shard_of[name]) from error

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                hint = "download it again"
                raise InputError(f"not a safetensors file: {error}", where=self.folder / name, hint=hint) from error
        return self._open[name]

    def _shards(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file():
            listed = self._json(INDEX).get("weight_map")
            if not isinstance(listed, dict) or not all(map(_plain_name, listed.values())):
                raise InputError(
                    "no valid weight_map", where=self.folder / INDEX, expected="tensor -> file in the folder"
                )
            self._refuse_missing(set(listed.values()))
            return listed
        self._refuse_missing({SINGLE})
        self.shard_of, self._open = {}, {}
        return dict.fromkeys(self._shard(SINGLE).keys(), SINGLE)

    def _refuse_missing(self, shards: set[str]) -> None:
        for shard in sorted(shards):
            if not (self.folder / shard).is_file():
                raise InputError("a weight file is missing", where=self.folder / shard, hint="download the model again")

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        try:
            tree = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"no {name}", where=self.folder, expected="a hub checkpoint with safetensors") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON: {error}", where=path) from error
        if not isinstance(tree, dict):
            raise InputError("not a JSON object", where=path)
        return tree


def _plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and not name.startswith(".")


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
