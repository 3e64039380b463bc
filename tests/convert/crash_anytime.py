"""Convert again and again, each time killed at a random moment, then once more to the end.

python crash_anytime.py CHECKPOINT FOLDER MOMENTS: prints a JSON line for each: the root hash of the pack at the end,
and which of the files that the killed run had finished were written anew.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from crash import SETTINGS

from krasis.convert.pipeline import Conversion
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.pack.writer import JOURNAL

import torch  # isort: skip

JOBS = 3


def convert(source, pack):
    if pack.exists():
        return Pack(pack).manifest.root
    return Conversion(source, SETTINGS).run(pack, Silent(), jobs=JOBS).root


def killed_after(seconds, source, pack):
    """Run in a child process that is killed then, unless it ended before."""
    child = os.fork()
    if child == 0:
        convert(source, pack)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def finished(partial):
    """File name -> (inode, time of change) of what the journal says is whole."""
    if not (partial / JOURNAL).is_file():
        return {}
    lines = (partial / JOURNAL).read_bytes().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    names = [entry["file"]["name"] for entry in entries if entry["type"] == "done"]
    return {name: state(partial / name) for name in names}


def state(path):
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def main(source, folder, moments):
    source, folder, chance = Path(source), Path(folder), random.Random(0)
    # Threads of the parent would be missing in its children.
    torch.set_num_threads(1)
    begin = time.monotonic()
    convert(source, folder / "whole")
    takes = time.monotonic() - begin
    for moment in range(int(moments)):
        pack = folder / str(moment) / "pack"
        killed_after(chance.uniform(0, takes), source, pack)
        before = finished(pack.with_name("pack.partial"))
        root = convert(source, pack)
        redone = [name for name, was in before.items() if state(pack / name) != was]
        print(json.dumps({"root": root, "finished": len(before), "redone": redone}), flush=True)
        shutil.rmtree(pack.parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
