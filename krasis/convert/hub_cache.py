"""One model's folder in the hub's cache, in the structure that every tool of the hub shares.

models--NAME/refs/REVISION            the commit that a branch or tag was last seen at
models--NAME/blobs/ETAG               a file's content; ETAG.incomplete while it is being fetched
models--NAME/snapshots/COMMIT/FILE    a link to its blob
.locks/models--NAME/ETAG.lock         held while a blob is being fetched or dropped
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from krasis.convert.download import HubFile


class HubCache:
    """The cached files of `model` under the cache folder `root`."""

    def __init__(self, root: Path, model: str) -> None:
        self.root = root
        name = "models--" + model.replace("/", "--")
        self._folder, self._locks = root / name, root / ".locks" / name

    def path(self, commit: str, name: str) -> Path:
        """Where a file lies once it is whole."""
        return self._folder / "snapshots" / commit / name

    def blob(self, file: HubFile) -> Path:
        return self._folder / "blobs" / file.etag

    def partial(self, file: HubFile) -> Path:
        return self._folder / "blobs" / f"{file.etag}.incomplete"

    @contextlib.contextmanager
    def lock(self, file: HubFile) -> Iterator[None]:
        """Keep every other process from fetching or dropping the file's blob."""
        self._locks.mkdir(parents=True, exist_ok=True)
        self.blob(file).parent.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"{file.etag}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def have(self, file: HubFile) -> int:
        """The bytes of a file that are there already, whole or in part."""
        for path in (self.blob(file), self.partial(file)):
            with contextlib.suppress(OSError):
                return min(path.stat().st_size, file.size)
        return 0

    def link(self, commit: str, file: HubFile) -> Path:
        """Give a blob its name in a snapshot."""
        path = self.path(commit, file.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.unlink(missing_ok=True)
            try:
                path.symlink_to(os.path.relpath(self.blob(file), path.parent))
            except OSError:
                # As the hub's own tools do on a disk without links.
                self.blob(file).rename(path)
        return path

    def drop(self, commit: str, file: HubFile) -> None:
        """Remove a file from a snapshot, and its blob unless another file or snapshot has it too."""
        with self.lock(file):
            self.path(commit, file.name).unlink(missing_ok=True)
            self.partial(file).unlink(missing_ok=True)
            blob = self.blob(file)
            # A blob may itself be a link, into a store that models share.
            others = (path for path in self._folder.glob("snapshots/**/*") if path.is_symlink())
            if not any(_target(other) == blob for other in others):
                blob.unlink(missing_ok=True)

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision was last seen at, if that is cached."""
        with contextlib.suppress(OSError):
            revision = (self._folder / "refs" / revision).read_text().strip()
        return revision if (self._folder / "snapshots" / revision / "config.json").is_file() else None

    def remember(self, revision: str, commit: str) -> None:
        """Note the commit that a revision is at."""
        path = self._folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        scratch.write_text(commit)
        scratch.replace(path)

    def files(self, commit: str) -> list[HubFile]:
        """The files of a snapshot that are there."""
        found = sorted(path for path in (self._folder / "snapshots" / commit).iterdir() if path.is_file())
        return [HubFile(path.name, path.stat().st_size, _etag(path)) for path in found]


def _etag(path: Path) -> str:
    if path.is_symlink():
        return _target(path).name
    # No blob on a disk without links; what tells two states of a file apart has to do.
    return f"{path.stat().st_size}-{path.stat().st_mtime_ns}"


def _target(link: Path) -> Path:
    return Path(os.path.normpath(link.parent / link.readlink()))
