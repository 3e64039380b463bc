"""A model of the hub as a store of files: fetched one by one at one commit, and dropped where that is wanted."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from krasis.convert.download import FAILURES, HubFile, Link, Progress, reason
from krasis.convert.encodings.stored import Header
from krasis.convert.hub_cache import HubCache
from krasis.convert.store import MOST_SMALL, read_headers
from krasis.errors import InputError

MAIN = "main"
LIST_RETRIES = 3
"""Fewer than of a download: without a network, a cached model should not be waited for."""

MAX_HEADER_BYTES = 100_000_000
FIRST_READ_BYTES = 1 << 18
COMMIT = "[0-9a-f]{40}"
ETAG = "[0-9a-f]{40}|[0-9a-f]{64}"
TOKEN_HINT = "set HF_TOKEN to a token that may read it"


class HubStore:
    """The files of hub model `model` at `commit`: what `revision` is now, or was when what has `begun` began.

    Whole files lie in the hub's cache; with `discard` a shard leaves it when it is released. `say` is told of cut
    connections, and of an unreachable hub whose cached files have to do. Raises InputError where there is no such model
    or revision, or it is not for this user.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        say: Callable[[str], None],
        *,
        begun: str = "",
        discard: bool = False,
        link: Link | None = None,
        cache: Path | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.where = model
        self.discard = discard
        self._say, self._endpoint = say, endpoint
        self._revision = revision or MAIN
        self._link = link or Link(say)
        self._cache = HubCache(cache or Path(constants.HF_HUB_CACHE), model)
        self._away = False
        self.commit, files = self._resolve(self._pinned(begun))
        self._files = {file.name: file for file in files}

    @property
    def origin(self) -> str:
        return f"{self.where} {self._revision} {self.commit}"

    @property
    def disk(self) -> Path:
        self._cache.root.mkdir(parents=True, exist_ok=True)
        return self._cache.root

    def full_name(self, shard: str) -> str:
        return f"hf://{self.where}@{self.commit}/{shard}"

    def close(self) -> None:
        """End downloads that are under way in other threads."""
        self._link.close()

    def small(self, name: str) -> bytes | None:
        """The content of a small file, None where the model has none of this name."""
        file = self._files.get(name)
        if file is None:
            return None
        if file.size > MOST_SMALL:
            raise self._bad(f"{name} has {file.size} bytes", f"at most {MOST_SMALL}")
        return self.fetch(name, lambda _: None).read_bytes()

    def sha256(self, name: str) -> str | None:
        """The hash that the hub promises of a large file."""
        return self._file(name).sha256

    def identity(self, name: str) -> str:
        """The file's etag: the hub never changes what a commit holds."""
        return self._file(name).etag

    def size(self, name: str) -> int:
        """Bytes of a file. Raises InputError where there is none of this name."""
        return self._file(name).size

    def missing(self, name: str) -> int:
        """Bytes of a file that are yet to be fetched."""
        file = self._file(name)
        return 0 if self._path(file).exists() else file.size - self._cache.have(file)

    def headers(self, name: str) -> dict[str, Header]:
        """Every tensor of a shard, read from its first bytes alone where the shard is not there."""
        file = self._file(name)
        path = self._path(file)
        if path.exists():
            return read_headers(path)
        # Checked as that of any shard is: at the head of a file in memory whose rest takes no room.
        with os.fdopen(os.memfd_create(name), "wb") as sparse:
            sparse.write(self._head(file))
            sparse.truncate(file.size)
            return read_headers(Path(f"/proc/self/fd/{sparse.fileno()}"), f"{self.where}/{name}")

    def fetch(self, name: str, progress: Progress) -> Path:
        """A file, whole; `progress` is told of its bytes. Raises InputError where it is not what the hub promises."""
        file = self._file(name)
        path = self._path(file)
        if not path.exists():
            with self._cache.lock(file):
                if not self._cache.blob(file).exists():
                    self._download(file, progress)
                self._cache.link(self.commit, file)
        if path.stat().st_size != file.size:
            what, hint = "a cached file has another size", "delete it"
            raise InputError(what, where=path, expected=f"{file.size} bytes", hint=hint)
        return path

    def release(self, name: str) -> None:
        """Tell that a shard is not needed for now."""
        if self.discard:
            self._cache.drop(self.commit, self._file(name))

    def _download(self, file: HubFile, progress: Progress) -> None:
        partial = self._cache.partial(file)
        try:
            self._link.download(self._url(file), file, partial, progress)
        except FAILURES as error:
            self._fail(error, file.name)
        partial.rename(self._cache.blob(file))

    def _head(self, file: HubFile) -> bytes:
        """The header of a shard, with its length before it."""
        try:
            start = self._link.read(self._url(file), 0, min(FIRST_READ_BYTES, file.size))
            end = 8 + int.from_bytes(start[:8], "little")
            if len(start) < 8 or end > min(MAX_HEADER_BYTES, file.size):
                raise self._bad(f"{file.name} states a header of {end - 8} bytes", "one that fits the file, and 100 MB")
            more = end - len(start)
            return start + self._link.read(self._url(file), len(start), more) if more > 0 else start[:end]
        except FAILURES as error:
            self._fail(error, file.name)

    def _pinned(self, begun: str) -> str | None:
        """The commit that an unfinished pack of this model and revision is made from."""
        *source, commit = begun.split(" ")
        if source != [self.where, self._revision]:
            return None
        self._say(f"going on with commit {commit}, as the unfinished pack does")
        return commit

    def _resolve(self, commit: str | None) -> tuple[str, list[HubFile]]:
        """The commit, the one told if any, and its files: as the hub lists them, else as they lie in the cache."""
        api, revision = HfApi(endpoint=self._endpoint), commit or self._revision
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            info = self._link.patiently(
                lambda: api.model_info(self.where, revision=revision, files_metadata=True, timeout=timeout),
                retries=LIST_RETRIES,
            )
        except (HfHubHTTPError, HFValidationError) as error:
            self._fail(error, "its list of files", revision)
        except FAILURES as error:
            return self._resolve_from_cache(commit, error)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise self._bad("the hub's list of files can't be read", reason(error)) from error
        sha = str(info.sha)
        if not re.fullmatch(COMMIT, sha) or commit not in (None, sha):
            raise self._bad(f"the hub names commit {sha!r}", commit or "40 hex digits")
        found = [self._listed(sibling) for sibling in info.siblings or []]
        if revision != sha and _harmless(revision):
            self._cache.remember(revision, sha)
        return sha, [file for file in found if "/" not in file.name]

    def _resolve_from_cache(self, commit: str | None, error: Exception) -> tuple[str, list[HubFile]]:
        found = self._cache.commit_of(commit or self._revision)
        if found is None or not re.fullmatch(COMMIT, found):
            raise self._bad("can't reach the hub, and the model is not cached", reason(error)) from error
        self._away = True
        self._say(f"can't reach the hub ({reason(error)}): using {self.where} at {found} from the cache")
        return found, self._cache.files(found)

    def _listed(self, sibling: RepoSibling) -> HubFile:
        name = sibling.rfilename
        if not _harmless(name):
            raise self._bad(f"the hub lists a file {name!r}", "a path inside the model")
        size, etag = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
        if type(size) is not int or not 0 <= size < 1 << 53 or not re.fullmatch(ETAG, str(etag)):
            raise self._bad(f"the hub lists {name} with size {size!r} and hash {etag!r}", "those of a file")
        return HubFile(name, size, str(etag))

    def _file(self, name: str) -> HubFile:
        if name not in self._files:
            if self._away:
                raise self._bad(f"{name} is not cached", "a hub that can be reached")
            raise self._bad(f"{name} is missing", f"a file of commit {self.commit}")
        return self._files[name]

    def _path(self, file: HubFile) -> Path:
        return self._cache.path(self.commit, file.name)

    def _url(self, file: HubFile) -> str:
        return hf_hub_url(self.where, file.name, revision=self.commit, endpoint=self._endpoint)

    def _bad(self, what: str, expected: str, hint: str = "") -> InputError:
        return InputError(what, where=self.where, expected=expected, hint=hint)

    def _fail(self, error: Exception, wanted: str, revision: str = "") -> NoReturn:
        """Raise the one line that an error of the hub's client comes to."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, HFValidationError):
            found = self._bad("no hub id", reason(error))
        elif isinstance(error, GatedRepoError):
            hint = f"accept its terms on its page, then {TOKEN_HINT}"
            found = self._bad("the model is gated", "a user who was given access", hint)
        elif isinstance(error, RepositoryNotFoundError) or status == 401:
            found = self._bad("no such model, or it is private", "a hub id", f"check the name, or {TOKEN_HINT}")
        elif isinstance(error, RevisionNotFoundError):
            found = self._bad(f"no revision {revision}", "a branch, tag or commit of the model")
        elif isinstance(error, DisabledRepoError):
            found = self._bad("the hub has disabled the model", reason(error))
        elif isinstance(error, OfflineModeIsEnabled):
            found = self._bad(f"{wanted} is not cached", "nothing to fetch while HF_HUB_OFFLINE is set")
        elif status is not None:
            found = self._bad(f"can't fetch {wanted}", f"the hub answers {status}", "run the same command to continue")
        else:
            found = self._bad(f"can't fetch {wanted}", reason(error), "run the same command to continue")
        raise found from error


def _harmless(name: object) -> bool:
    """Whether a listed name is a path that leads nowhere but into the model."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    return not {"", ".", ".."} & {*name.split("/")}
