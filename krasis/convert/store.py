"""Where a checkpoint's files come from: a folder, or anything else that can give them one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open

from krasis.convert.encodings.stored import Header
from krasis.errors import InputError, UsageError

MOST_SMALL = 100_000_000
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
        """Nothing needs the shard for now. With `discard` it leaves the disk, and can be fetched again."""

    def close(self) -> None:
        """End every `fetch` that is under way."""

    @property
    def discard(self) -> bool: ...

    @property
    def disk(self) -> Path:
        """A folder on the disk that shards come to lie on."""

    def missing(self, shard: str) -> int:
        """Bytes of a shard that are yet to come to that disk."""

    def full_name(self, shard: str) -> str:
        """What the pack's record of its sources calls the shard."""

    @property
    def origin(self) -> str:
        """What an unfinished pack remembers of where its source comes from."""


class FolderStore:
    """A local folder in the hub's form. Links may lead to files of the folder or the hub cache's own, nowhere else:
    a checkpoint must not make krasis pack a file of the user's.
    """

    discard, origin = False, ""

    def __init__(self, folder: Path) -> None:
        self.where = self.disk = folder

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

    def close(self) -> None:
        pass

    def missing(self, shard: str) -> int:
        return 0

    def full_name(self, shard: str) -> str:
        return shard

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


def read_headers(path: Path, where: object = None) -> dict[str, Header]:
    """Every tensor of a local safetensors file, called `where` in messages. Raises InputError where it is none."""
    try:
        with safe_open(path, framework="pt") as shard:
            slices = ((name, shard.get_slice(name)) for name in shard.keys())  # noqa: SIM118
            return {name: Header(found.get_dtype(), tuple(found.get_shape())) for name, found in slices}
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a safetensors file: {error}", where=where or path, hint="download it again") from error


def open_store(
    source: str,
    revision: str | None,
    say: Callable[[str], None],
    *,
    discard: bool = False,
    begun: str = "",
) -> Store:
    """The store of `source`: a local folder, or a hub id, at `revision` where one is told.

    `say` gets lines for the user. `begun` is the origin of an unfinished pack, whose commit is gone on with. Raises
    InputError where there is no such checkpoint, UsageError where an option does not go with it.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise InputError("--revision names a state of a hub model", where=source, expected="a hub id, not a folder")
        if discard:
            raise UsageError(
                "--discard-source drops what was downloaded", where=source, expected="a hub id, not a folder"
            )
        return FolderStore(path)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(
            "no such checkpoint", where=source, expected="a folder, or a hub id such as Qwen/Qwen3-30B-A3B"
        )
    # Importing the hub client takes longer than converting a small folder.
    from krasis.convert.hub import HubStore

    return HubStore(source, revision, say, discard=discard, begun=begun)
