"""Where a checkpoint's files come from: a folder, or anything else that can give them one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open

from krasis.convert.encodings.stored import Header
from krasis.errors import InputError

MOST_SMALL = 128 << 20
"""Bytes of the largest small file that is read."""


class Store(Protocol):
    """Small files as bytes, shards by their headers until one is asked for. Methods may be called from any thread."""

    @property
    def where(self) -> object:
        """What messages call it."""

    def small(self, name: str) -> bytes | None:
        """The content of a small file (config.json, the index, the tokenizer), None where there is none.

        Raises InputError where it is larger than MOST_SMALL.
        """

    def headers(self, shard: str) -> dict[str, Header]:
        """Every tensor of a shard. Raises InputError where it is missing or no safetensors file."""

    def size(self, shard: str) -> int:
        """Bytes of a shard."""

    def sha256(self, shard: str) -> str | None:
        """The hash of a shard where it is known without reading it."""

    def identity(self, shard: str) -> str:
        """What tells cheaply whether a shard is still the same. Raises InputError where it is gone."""

    def fetch(self, shard: str, progress: Callable[[int], None]) -> Path:
        """The shard, whole on disk; `progress` is called with bytes as they arrive from elsewhere."""

    def release(self, shard: str) -> None:
        """Nothing needs the shard any more."""


class FolderStore:
    """A local folder in the hub's form. Links may lead to files of the folder or the hub cache's own, nowhere else:
    a checkpoint must not make krasis pack a file of the user's.
    """

    def __init__(self, folder: Path) -> None:
        self.where = folder

    def small(self, name: str) -> bytes | None:
        path = self._follow(name)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MOST_SMALL + 1)
        if len(content) > MOST_SMALL:
            raise InputError("the file is too large", where=path, expected=f"at most {MOST_SMALL} bytes")
        return content

    def headers(self, shard: str) -> dict[str, Header]:
        return read_headers(self._path(shard))

    def size(self, shard: str) -> int:
        return self._path(shard).stat().st_size

    def sha256(self, shard: str) -> str | None:
        return None

    def identity(self, shard: str) -> str:
        found = self._path(shard).stat()
        return f"{found.st_size} bytes, inode {found.st_ino}, modified {found.st_mtime_ns}"

    def fetch(self, shard: str, progress: Callable[[int], None]) -> Path:
        return self._path(shard)

    def release(self, shard: str) -> None:
        pass

    def _path(self, shard: str) -> Path:
        path = self._follow(shard)
        if not path.is_file():
            raise InputError("a weight file is missing", where=path, hint="download the model again")
        return path

    def _follow(self, name: str) -> Path:
        path = self.where / name
        if path.is_symlink():
            home = self.where.resolve()
            cache = {home.parent.parent / "blobs"} if home.parent.name == "snapshots" else set()
            if path.resolve().parent not in {home, *cache}:
                hint = "put the file itself there"
                raise InputError("a link out of the checkpoint", where=path, expected="a plain file", hint=hint)
        return path


def read_headers(path: Path) -> dict[str, Header]:
    """Every tensor of a local safetensors file. Raises InputError where it is none."""
    try:
        with safe_open(path, framework="pt") as shard:
            slices = ((name, shard.get_slice(name)) for name in shard.keys())  # noqa: SIM118
            return {name: Header(found.get_dtype(), tuple(found.get_shape())) for name, found in slices}
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a safetensors file: {error}", where=path, hint="download it again") from error
