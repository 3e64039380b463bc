"""Writes that are whole or absent after a kill, and a full disk said plainly."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from krasis.errors import FitError, UsageError

TMP = ".tmp"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a disk or quota that runs full into a FitError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FitError(
            "the disk is full", where=path, hint="make room, then run the same command to continue"
        ) from error


def write_synced(path: Path, *content: bytes | memoryview) -> None:
    """Write a file of one piece after another beside `path`, sync it, then give it its name."""
    scratch = path.with_name(path.name + TMP)
    with disk_errors(path):
        with scratch.open("wb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)


def write_output(path: Path, content: bytes, what: str) -> None:
    """Write a file that a user named, and its folder, whole or not at all. `what` it is goes into the error.

    Raises UsageError where nothing can be written there, FitError on a full disk.
    """
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, content)
    except OSError as error:
        raise UsageError(f"can't write the {what}: {error.strerror}", where=path) from error


def lock_folder(path: Path, taken: str) -> int:
    """Lock a folder for this process until the handle that is returned is closed.

    Raises UsageError, which says `taken`, where another process has it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(taken, where=path, hint="wait for it to end, or name another destination") from None
    return handle


def sync_folder(path: Path) -> None:
    """Make the names in a folder as durable as the files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
