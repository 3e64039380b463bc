"""Files of the hub over HTTP: checked against what the hub promises, continued where a connection was cut."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from krasis.errors import InputError, KrasisError
from krasis.pack.disk import disk_errors

T = TypeVar("T")
Progress = Callable[[int], None]

CHUNK = 1 << 20
RETRIES = 10
LONGEST_PAUSE_S = 30.0
PASSING = frozenset({408, 429, 500, 502, 503, 504})
PARTIAL = 206


@dataclass(frozen=True)
class HubFile:
    """What the hub promises of a file: its name, its size in bytes, and an etag that is a hash of its content."""

    name: str
    size: int
    etag: str

    @property
    def sha256(self) -> str | None:
        """The content's SHA-256, which the hub tells of large files alone."""
        return self.etag if len(self.etag) == 64 else None

    def digest(self) -> Any:
        """A hash to feed the content to, whose hex digits must be the etag: SHA-256, or git's for small files."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class CutError(Exception):
    """An answer ended before it was whole."""


# What a request may come to. HTTPError is that of whichever HTTP client the hub's library uses.
FAILURES = (HTTPError, CutError, OfflineModeIsEnabled)


class Link:
    """Requests that outlive cut connections and a busy hub, with pauses that grow to LONGEST_PAUSE_S.

    `say` is told once, of the first failure. Where repeating does not help, one of FAILURES is raised.
    """

    def __init__(self, say: Callable[[str], None], first_pause_s: float = 1.0) -> None:
        self._say, self._first_pause_s = say, first_pause_s
        self._said = False
        self._closed = threading.Event()

    def close(self) -> None:
        """End what is under way in other threads, with a KrasisError there."""
        self._closed.set()

    def patiently(self, attempt: Callable[[], T], gained: Callable[[], int] = lambda: 0, retries: int = RETRIES) -> T:
        """What `attempt` gives. It may fail `retries` times in a row without `gained`, its bytes so far, growing."""
        failures, before = 0, gained()
        while True:
            try:
                return attempt()
            except (HTTPError, CutError) as error:
                failures = 1 if gained() > before else failures + 1
                if not _passing(error) or failures > retries:
                    raise
                before = gained()
                self._tell(error)
                self._closed.wait(min(self._first_pause_s * 2 ** (failures - 1), LONGEST_PAUSE_S))

    def read(self, url: str, first: int, count: int) -> bytes:
        """`count` bytes from `first` on."""
        return self.patiently(lambda: self._read(url, first, count))

    def download(self, url: str, file: HubFile, path: Path, progress: Progress) -> None:
        """Fill `path`, which may hold a first part of the file. It is emptied, with an InputError, if it holds another.

        `progress` is told of bytes as they are there, and of negative ones where a part was of no use.
        """
        with disk_errors(path), path.open("a+b") as out:
            _Download(self, url, file, out, progress).run()
            out.flush()
            os.fsync(out.fileno())

    @contextlib.contextmanager
    def get(self, url: str, **headers: str) -> Iterator[Any]:
        """The answer to a GET, its body not read yet."""
        self.check_open()
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as answer:
            hf_raise_for_status(answer)
            yield answer

    def check_open(self) -> None:
        if self._closed.is_set():
            raise KrasisError("the download was interrupted")

    def _read(self, url: str, first: int, count: int) -> bytes:
        with self.get(url, Range=f"bytes={first}-{first + count - 1}") as answer:
            if answer.status_code != PARTIAL and first:
                raise InputError("the hub ignores Range", where=url, expected=f"bytes from {first} on")
            found = bytearray()
            for chunk in answer.iter_raw():
                found += chunk
                if len(found) >= count:
                    return bytes(found[:count])
        raise CutError(f"{len(found)} of {count} bytes arrived")

    def _tell(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            self._say(f"no whole answer from the hub ({reason(error)}): asking for the rest, and so from now on")


class _Download:
    """One file on its way into `out`, of which `done` bytes are there and hashed."""

    def __init__(self, link: Link, url: str, file: HubFile, out: BinaryIO, progress: Progress) -> None:
        self._link, self._url, self._file, self._out, self._progress = link, url, file, out, progress
        self.done = 0
        self._digest = file.digest()

    def run(self) -> None:
        self._take_up()
        if self.done < self._file.size:
            self._link.patiently(self._attempt, lambda: self.done)
        if self._digest.hexdigest() != self._file.etag:
            self._refuse("is not what the hub promises", f"a hash of {self._file.etag}")

    def _take_up(self) -> None:
        """Hash what an earlier run left."""
        self._out.seek(0)
        while chunk := self._out.read(CHUNK):
            self._count(chunk)
        if self.done > self._file.size:
            self._start_over()

    def _attempt(self) -> None:
        wanted = {"Range": f"bytes={self.done}-"} if self.done else {}
        with self._link.get(self._url, **wanted) as answer:
            if answer.status_code == PARTIAL:
                self._check_range(answer.headers.get("Content-Range", ""))
            elif self.done:
                self._start_over()
            for chunk in answer.iter_raw():
                self._link.check_open()
                if self.done + len(chunk) > self._file.size:
                    self._refuse("is longer than the hub promises", f"{self._file.size} bytes")
                self._out.write(chunk)
                self._count(chunk)
        if self.done < self._file.size:
            raise CutError(f"{self.done} of {self._file.size} bytes arrived")

    def _check_range(self, found: str) -> None:
        expected = f"bytes {self.done}-{self._file.size - 1}/{self._file.size}"
        if found != expected:
            self._refuse(f"is answered with Content-Range {found!r}", expected)

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.done += len(chunk)
        self._progress(len(chunk))

    def _start_over(self) -> None:
        self._out.truncate(0)
        self._progress(-self.done)
        self.done, self._digest = 0, self._file.digest()

    def _refuse(self, what: str, expected: str) -> None:
        self._start_over()
        hint = "run the same command to fetch it again"
        raise InputError(f"{self._file.name} {what}", where=self._url, expected=expected, hint=hint)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _passing(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING
