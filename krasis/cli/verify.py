"""krasis verify."""

import time
from typing import Annotated

import typer

from krasis.cli.console import Reporter, emit_json, human, plain
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.errors import InputError, UsageError

JobsOption = Annotated[int | None, typer.Option(help="Threads; one a core when not given.")]


def verify(pack: PackArgument, jobs: JobsOption = None, json: JsonOption = False) -> None:
    """Check every bound and every hash of a pack."""
    from krasis.pack.reader import Pack

    if jobs is not None and not 1 <= jobs <= 1024:
        raise UsageError(f"--jobs is {jobs}", expected="1 to 1024")
    opened = Pack(pack)
    checked, broken, begin = 0, [], time.monotonic()
    with Reporter() as reporter:
        reporter.start("verifying", opened.manifest.total_bytes)
        for name, size, matches in opened.verify(jobs):
            checked += size
            reporter.advance(size)
            if not matches:
                broken.append(name)
    seconds = time.monotonic() - begin
    root = opened.manifest.root
    if json:
        speed = {"seconds": seconds, "bytes_per_s": checked / seconds}
        emit_json({"ok": not broken, "bytes": checked, "broken": broken, "root_hash": root, **speed})
    elif broken:
        print("\n".join(f"broken: {plain(name)}" for name in broken))
    else:
        print(f"{pack}: {human(checked)} verified at {human(checked / seconds)}/s, root {root[:12]}")
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        expected, hint = "the bytes that were written", "convert the model again"
        raise InputError(f"hash mismatch in {broken[0]}{more}", where=pack, expected=expected, hint=hint)
