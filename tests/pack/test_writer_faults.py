"""Writing packs where something goes wrong: a kill, damage, a full disk. Whole or not at all, and continued."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from small_pack import NEED, PLANS, arrays, spoil_and_write, stop_after, write_pack

from krasis.errors import FitError, InputError
from krasis.pack.file_writer import FileWriter
from krasis.pack.reader import Pack
from krasis.pack.writer import PackWriter


def test_resume_skips_what_is_finished(path, partial):
    stop_after(path, "a")
    assert not path.exists()
    before = (partial / "a.bin").stat().st_mtime_ns
    assert write_pack(path) == ["b"]
    assert (path / "a.bin").stat().st_mtime_ns == before
    assert Pack(path).manifest.errors["a.experts.w"] == (0, 0.25, 0.5)


def test_a_resumed_pack_is_the_one_of_a_single_run(path):
    stop_after(path, "b")
    write_pack(path)
    write_pack(path.with_name("twin"))
    assert (path / "manifest.json").read_bytes() == (path.with_name("twin") / "manifest.json").read_bytes()


def flip_middle(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [flip_middle, lambda file: file.write_bytes(file.read_bytes()[:-1]), Path.unlink],
    ids=["flipped", "shorter", "gone"],
)
def test_resume_redoes_damaged_files(path, partial, damage):
    stop_after(path, "a", "b")
    damage(partial / "a.bin")
    assert write_pack(path) == ["a"]
    assert all(matches for _, _, matches in Pack(path).verify())


def test_another_job_starts_over(path):
    stop_after(path, "a", "x", key="other")
    assert write_pack(path) == ["a", "b"]
    assert not (path / "x.bin").exists()


def test_a_journal_cut_at_any_byte_resumes(path, partial):
    stop_after(path, "a", "b")
    journal = (partial / "journal.jsonl").read_bytes()
    files = {name: (partial / name).read_bytes() for name in ("a.bin", "b.bin")}
    ends = [i for i, byte in enumerate(journal) if byte == ord("\n")]
    for cut in {0, 1, *ends, *(end + 1 for end in ends), *range(0, len(journal), 61)}:
        (partial / "journal.jsonl").write_bytes(journal[:cut])
        for name, content in files.items():
            (partial / name).write_bytes(content)
        with PackWriter(path, "job", NEED) as pack:
            assert set(pack.finished) == {f for f, end in zip(files, ends[1:], strict=True) if cut >= end}
            assert {p.name for p in partial.iterdir()} == {"journal.jsonl", *pack.finished}


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"\0" * 99, b'{"type":"done"}\n', b"[]\n"])
def test_junk_in_the_journal_is_dropped(path, partial, junk):
    stop_after(path, "a")
    with (partial / "journal.jsonl").open("ab") as journal:
        journal.write(junk)
    assert write_pack(path) == ["b"]


def raise_midway(path):
    with PackWriter(path, "job", NEED) as pack, pack.file("a.bin", PLANS) as out:
        out.put("experts", "cpu", 0, arrays(0))
        raise RuntimeError("midway")


def test_an_exception_midway_leaves_no_pack_and_no_half_file(path, partial):
    with pytest.raises(RuntimeError, match="midway"):
        raise_midway(path)
    assert not path.exists()
    assert not (partial / "a.bin").exists()
    with pytest.raises(InputError, match="unfinished"):
        Pack(partial)
    write_pack(path)
    assert all(matches for _, _, matches in Pack(path).verify())


def fails_with(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_can_be_resumed(path, partial, monkeypatch, number):
    stop_after(path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(FileWriter, "put", fails_with(number))
        with pytest.raises(FitError, match="the disk is full") as caught:
            write_pack(path)
    assert caught.value.exit_code == 4
    assert not path.exists()
    assert not (partial / "b.bin").exists()
    assert write_pack(path) == ["b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["journal.jsonl", "tokenizer.json.tmp", "manifest.json.tmp"])
def test_a_full_disk_is_a_fit_error_wherever_it_strikes(path, partial, name):
    def fill_up():
        (partial / name).unlink(missing_ok=True)
        (partial / name).symlink_to("/dev/full")

    with pytest.raises(FitError, match="the disk is full"):
        spoil_and_write(path, fill_up)
    assert not path.exists()


def full_after(steps, patch):
    """A disk that takes that many more writes: new names, room for files, and what is synced."""
    left = iter(range(steps))

    def guarded(real, writes=lambda *_: True):
        def call(*arguments, **options):
            if writes(*arguments) and next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    for name in ("fsync", "posix_fallocate"):
        patch.setattr(os, name, guarded(getattr(os, name)))
    patch.setattr(os, "open", guarded(os.open, lambda path, flags, *_: flags & os.O_CREAT))
    patch.setattr(Path, "open", guarded(Path.open, lambda path, mode="r", *_: mode[0] != "r"))
    for name in ("rename", "mkdir"):
        patch.setattr(Path, name, guarded(getattr(Path, name)))


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_a_disk_that_is_full_at_any_step_leaves_what_can_be_continued(tmp_path, monkeypatch, replaced):
    write_pack(tmp_path / "whole")
    for steps in range(100):
        path = tmp_path / str(steps) / "pack"
        if replaced:
            write_pack(path, names=("old",))
        with monkeypatch.context() as patch:
            full_after(steps, patch)
            try:
                write_pack(path, force=replaced)
            except FitError:
                pass
            else:
                break
        names = [file.name for file in Path(path).glob("*.bin")]
        if replaced and "old.bin" in names:
            assert names == ["old.bin"]
        if path.exists():
            assert all(matches for _, _, matches in Pack(path).verify())
        write_pack(path, force=True)
        assert (path / "manifest.json").read_bytes() == (tmp_path / "whole/manifest.json").read_bytes()
        assert [p.name for p in path.parent.iterdir()] == ["pack"]
    assert 15 < steps < 60


def test_other_disk_errors_keep_their_name(path, monkeypatch):
    monkeypatch.setattr(FileWriter, "put", fails_with(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_pack(path)


def test_too_little_space_is_refused_before_anything_is_written(path, partial, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(NEED - 1))
    with pytest.raises(FitError, match=f"{NEED} more bytes") as caught:
        write_pack(path, names=("a",))
    assert caught.value.exit_code == 4
    assert [p.name for p in partial.iterdir()] == ["journal.jsonl"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(NEED))
    assert write_pack(path, names=("a",)) == ["a"]


def test_space_already_taken_by_finished_files_counts(path, monkeypatch):
    stop_after(path, "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(0))
    assert write_pack(path, names=("a",)) == ["a"][1:]


def test_every_file_is_synced_before_it_is_named(path, monkeypatch):
    sync, rename, order = os.fsync, Path.rename, []

    def note_sync(handle):
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    def note_rename(old, new):
        order.append(f"-> {new.name}")
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write_pack(path, names=("a",))
    for name in ("a.bin", "tokenizer.json", "manifest.json"):
        assert order.index(f"{name}.tmp") < order.index(f"-> {name}")
    assert order[-4:] == ["-> manifest.json", "pack.partial", "-> pack", path.parent.name]


class Killed(BaseException):
    pass


def kill_after(steps, patch):
    """Let that many syncs and renames pass."""
    left = iter(range(steps))

    def guarded(real):
        def call(*arguments):
            if next(left, None) is None:
                raise Killed
            return real(*arguments)

        return call

    patch.setattr(os, "fsync", guarded(os.fsync))
    patch.setattr(Path, "rename", guarded(Path.rename))


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_a_kill_at_any_step_leaves_a_whole_pack_or_none(tmp_path, monkeypatch, replaced):
    for steps in range(100):
        path = tmp_path / str(steps) / "pack"
        if replaced:
            write_pack(path, names=("old",))
        try:
            with monkeypatch.context() as patch:
                kill_after(steps, patch)
                write_pack(path, force=replaced)
        except Killed:
            assert not path.exists() or all(matches for _, _, matches in Pack(path).verify())
            write_pack(path, force=True)
            assert [file.name for file in Pack(path).manifest.files] == ["a.bin", "b.bin"]
            assert [p.name for p in path.parent.iterdir()] == ["pack"]
        else:
            break
    assert 10 < steps < 50
