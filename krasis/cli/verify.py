"""krasis verify."""

import contextlib
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krasis.cli.console import Reporter, emit_json, human, note, plain
from krasis.cli.inspect import JsonOption, PackArgument
from krasis.cli.options import JobsOption, checked_jobs
from krasis.errors import InputError

if TYPE_CHECKING:
    from krasis.convert.compare import Comparison
    from krasis.pack.reader import Pack

WORST = 10


def verify(
    pack: PackArgument,
    against: Annotated[str | None, typer.Option(help="Compare every weight with this checkpoint too.")] = None,
    jobs: JobsOption = None,
    json: JsonOption = False,
) -> None:
    """Check every bound and every hash of a pack; with a checkpoint, every weight."""
    from krasis.pack.reader import Pack

    jobs = checked_jobs(jobs) or len(os.sched_getaffinity(0))
    opened = Pack(pack)
    with Reporter() as reporter:
        result = _hash(opened, reporter, jobs)
        found = _compare(opened, against, reporter, jobs) if against is not None and result["ok"] else None
    if found is not None:
        result |= {"ok": not found.wrong and not found.changed, "against": _summary(found)}
    if json:
        emit_json(result)
    else:
        _print(opened, result)
    _refuse(opened, result)


def _hash(pack: "Pack", reporter: Reporter, jobs: int) -> dict[str, Any]:
    checked, broken, begin = 0, [], time.monotonic()
    reporter.start("verifying", pack.manifest.total_bytes)
    for name, size, matches in pack.verify(jobs):
        checked += size
        reporter.advance(size)
        if not matches:
            broken.append(name)
    seconds = time.monotonic() - begin
    speed = {"seconds": seconds, "bytes_per_s": checked / seconds}
    return {"ok": not broken, "bytes": checked, "broken": broken, "root_hash": pack.manifest.root, **speed}


def _compare(pack: "Pack", source: str, reporter: Reporter, jobs: int) -> "Comparison":
    import torch

    from krasis.convert.compare import compare
    from krasis.convert.store import open_store

    torch.set_num_threads(1)
    with contextlib.closing(open_store(source, None, note)) as store:
        return compare(pack, store, reporter, jobs)


def _summary(found: "Comparison") -> dict[str, Any]:
    return {
        "tensors": found.tensors,
        "wrong": found.wrong,
        "changed_files": found.changed,
        "worst": [{"matrix": name, "rel_rms_error": error} for name, error in found.worst(WORST)],
    }


def _print(pack: "Pack", result: dict[str, Any]) -> None:
    for name in result["broken"]:
        print(f"broken: {plain(name)}")
    if not result["broken"]:
        speed = f"{human(result['bytes'])} verified at {human(result['bytes_per_s'])}/s"
        print(f"{pack.path}: {speed}, root {result['root_hash'][:12]}")
    if found := result.get("against"):
        for name, fault in found["wrong"].items():
            print(f"wrong: {plain(name)} {plain(fault)}")
        for name in found["changed_files"]:
            print(f"changed: {plain(name)}")
        right = found["tensors"] - sum("@" in name for name in found["wrong"])
        print(f"{right} of {found['tensors']} tensors are as far from the checkpoint as stated; the furthest:")
        for entry in found["worst"]:
            print(f"  {entry['matrix']:<40} {entry['rel_rms_error']:.3%}")


def _refuse(pack: "Pack", result: dict[str, Any]) -> None:
    if broken := result["broken"]:
        expected, hint = "the bytes that were written", "convert the model again"
        raise InputError(f"hash mismatch in {_some(broken)}", where=pack.path, expected=expected, hint=hint)
    found = result.get("against", {"wrong": {}, "changed_files": []})
    if wrong := found["wrong"]:
        name, fault = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"{name}: {fault}{more}", where=pack.path, expected="what the checkpoint gives")
    if changed := found["changed_files"]:
        expected = "the files the pack was made from, by their hashes"
        raise InputError(f"the checkpoint changed: {_some(changed)}", where=pack.path, expected=expected)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
