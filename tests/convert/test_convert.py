"""Converting: the same bytes every time, whatever the threads, stops and restarts."""

import hashlib

import pytest
import torch

from krasis.convert.pipeline import Conversion
from krasis.errors import FitError, UsageError
from krasis.native.cpu import ISA_VARIABLE, ISAS, best_isa
from krasis.pack import writer
from krasis.pack.manifest import Settings
from krasis.pack.reader import Pack

SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=64, layouts=("marlin", "cpu"))


class StopAfter:
    """Progress that raises once so many bytes were converted."""

    def __init__(self, limit):
        self._left = limit

    def start(self, task, total_bytes):
        self._counts = task == "converting"

    def advance(self, done_bytes):
        if self._counts:
            self._left -= done_bytes
        if self._left < 0:
            raise InterruptedError


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def conversion(demo):
    return Conversion(demo, SETTINGS)


@pytest.fixture(scope="module")
def whole(conversion, tmp_path_factory):
    """The pack of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "pack"
    conversion.run(path, StopAfter(1 << 40))
    return path


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_every_run_writes_the_same_bytes(jobs, isa, demo, whole, tmp_path, monkeypatch):
    if ISAS.index(isa) > ISAS.index(best_isa()):
        pytest.skip(f"this machine lacks {isa}")
    monkeypatch.setenv(ISA_VARIABLE, isa)
    torch.set_num_threads(jobs)
    Conversion(demo, SETTINGS).run(tmp_path / "pack", StopAfter(1 << 40), jobs=jobs)
    assert hashes(tmp_path / "pack") == hashes(whole)


def test_the_pack_is_as_large_as_planned(conversion, whole):
    assert conversion.bytes == Pack(whole).manifest.weight_bytes


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_stopped_run_is_continued(share, conversion, whole, tmp_path):
    path = tmp_path / "pack"
    with pytest.raises(InterruptedError):
        conversion.run(path, StopAfter(conversion.bytes * share))
    assert not path.exists()
    conversion.run(path, StopAfter(1 << 40))
    assert hashes(path) == hashes(whole)
    assert not path.with_name("pack.partial").exists()


def test_a_damaged_partial_pack_is_mended(conversion, whole, tmp_path):
    path, partial = tmp_path / "pack", tmp_path / "pack.partial"
    with pytest.raises(InterruptedError):
        conversion.run(path, StopAfter(conversion.bytes * 0.7))
    content = bytearray((partial / "base.bin").read_bytes())
    content[1000] ^= 1
    (partial / "base.bin").write_bytes(content)
    (partial / "layer-000.bin").unlink()
    with (partial / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"type":"done","fi')
    conversion.run(path, StopAfter(1 << 40))
    assert hashes(path) == hashes(whole)


def test_a_partial_pack_of_another_job_is_dropped(demo, conversion, whole, tmp_path):
    path = tmp_path / "pack"
    other = Settings(expert_bits=8, dense_bits=8, group_size=64, layouts=("cpu",))
    with pytest.raises(InterruptedError):
        Conversion(demo, other).run(path, StopAfter(5 << 20))
    conversion.run(path, StopAfter(1 << 40))
    assert hashes(path) == hashes(whole)


def test_an_existing_pack_is_kept_unless_forced(conversion, whole, convert, demo, tmp_path):
    path = convert(demo, tmp_path / "pack", expert_bits=16, dense_bits=16)
    before = hashes(path)
    with pytest.raises(UsageError, match=r"the destination exists.*--force"):
        conversion.run(path, StopAfter(1 << 40))
    assert hashes(path) == before
    conversion.run(path, StopAfter(1 << 40), force=True)
    assert hashes(path) == hashes(whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pack"]


def test_force_replaces_packs_alone(conversion, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/letter.txt").write_text("x")
    with pytest.raises(UsageError, match="no pack"):
        conversion.run(tmp_path / "precious", StopAfter(1 << 40), force=True)
    assert (tmp_path / "precious/letter.txt").read_text() == "x"


def test_too_little_disk_is_known_before_writing(conversion, tmp_path, monkeypatch):
    usage = writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage._replace(free=conversion.bytes - 1))
    with pytest.raises(FitError, match=rf"more bytes.*{conversion.bytes - 1} are free"):
        conversion.run(tmp_path / "pack", StopAfter(1 << 40))
    assert not (tmp_path / "pack").exists()
    assert not list(tmp_path.rglob("*.bin"))
