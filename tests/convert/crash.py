"""Convert again and again, the n-th time killed before the n-th change to the file system.

python crash.py CHECKPOINT FOLDER [OLD]: leaves FOLDER/0, FOLDER/1, ... with what each run left behind; the last one
ended undisturbed. With OLD every run replaces a copy of that pack.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from krasis.convert.pipeline import Conversion
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=32, layouts=("marlin", "cpu"))


def die_before(change, folder):
    """Kill this process before its `change`-th change under `folder`, counted from 0."""
    left = change

    def watch(event, arguments):
        nonlocal left
        if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & WRITES:
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(watch)


def survives(change, source, folder, old):
    """Whether a run in a child process ended before its `change`-th change."""
    folder.mkdir()
    if old is not None:
        shutil.copytree(old, folder / "pack")
    child = os.fork()
    if child == 0:
        die_before(change, folder)
        Conversion(source, SETTINGS).run(folder / "pack", Silent(), force=old is not None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"run {change} ended with {status}")
    return status == 0


def main(source, folder, old=None):
    change = 0
    while not survives(change, Path(source), Path(folder) / str(change), old):
        change += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
