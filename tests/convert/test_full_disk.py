"""Conversions onto a real disk that is too small: exit code 4, no pack, and one that goes on with more room."""

import shutil
import subprocess

import pytest

from krasis import cli
from krasis.convert.pipeline import Conversion
from krasis.errors import FitError
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack

SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"))
MIB = 1 << 20


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk of a size: {done.stderr.strip() or 'mount failed'}")


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB, to be made larger."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "krasis-test", place)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def resized(disk):
    def resize(**options):
        mount("-o", ",".join(["remount", *(f"{key}={value}" for key, value in options.items())]), disk)

    return resize


@pytest.fixture
def blind(monkeypatch):
    """Free space looks endless, as where another program takes it while a conversion runs."""
    usage = shutil.disk_usage("/")._replace(free=1 << 60)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_every_disk_too_small_is_told_and_continued_on(disk, resized, blind, demo, demo_pack):
    conversion = Conversion(demo, SETTINGS)
    path = disk / "pack"
    for size in (64 << 10, 1 * MIB, 3 * MIB, 6 * MIB, 9 * MIB, conversion.bytes, conversion.bytes + (64 << 10)):
        resized(size=size)
        with pytest.raises(FitError, match="the disk is full"):
            Conversion(demo, SETTINGS).run(path, Silent(), jobs=2)
        assert not path.exists()
        assert not list(disk.glob("*.replaced*"))
    assert (disk / "pack.partial/layer-001.bin").exists()
    resized(size=64 * MIB)
    conversion.run(path, Silent(), jobs=2)
    assert Pack(path).manifest == Pack(demo_pack()).manifest
    assert [entry.name for entry in disk.iterdir()] == ["pack"]


@pytest.mark.parametrize("names", range(2, 11))
def test_a_disk_without_room_for_more_names(names, disk, resized, demo, demo_pack):
    resized(size=64 * MIB, nr_inodes=names)
    with pytest.raises(FitError, match="the disk is full"):
        Conversion(demo, SETTINGS).run(disk / "pack", Silent(), jobs=2)
    assert not (disk / "pack").exists()
    resized(nr_inodes=1000)
    Conversion(demo, SETTINGS).run(disk / "pack", Silent(), jobs=2)
    assert Pack(disk / "pack").manifest == Pack(demo_pack()).manifest


def test_a_heat_profile_without_room(disk, resized, demo_pack, texts, monkeypatch, capsys):
    resized(nr_inodes=3)
    out = disk / "a/b/heat.json.zst"
    arguments = ["profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--out", out]
    monkeypatch.setattr("sys.argv", ["krasis", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 4
    assert "the disk is full" in capsys.readouterr().err
    assert not out.exists()
