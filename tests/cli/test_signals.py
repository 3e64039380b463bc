"""Interrupted, or left by whoever read the output: a clean end."""

import signal

import pytest

INTERRUPTED = 130


@pytest.fixture
def long_run(spawn, demo_pack):
    """A run that has printed its first letter and has thousands of tokens to go."""
    process = spawn("run", demo_pack(), "--device", "cpu", "--raw", "--prompt", "def ", "--max-tokens", 4000)
    assert len(process.stdout.read(1)) == 1
    return process


def test_an_interrupted_run_ends_cleanly(long_run):
    long_run.send_signal(signal.SIGINT)
    _, errors = long_run.communicate(timeout=60)
    assert (long_run.returncode, errors.strip()) == (INTERRUPTED, "")


def test_a_reader_that_leaves_early_is_no_failure_worth_a_traceback(long_run):
    long_run.stdout.close()
    assert long_run.wait(timeout=60) == 1
    assert long_run.stderr.read() == ""


def test_an_interrupted_convert_can_be_continued(spawn, demo, tmp_path, convert, demo_pack):
    process = spawn("convert", demo, tmp_path / "pack")
    while not (tmp_path / "pack.partial/base.bin").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors
    assert not (tmp_path / "pack").exists()
    convert(demo, tmp_path / "pack")
    assert (tmp_path / "pack/manifest.json").read_bytes() == (demo_pack() / "manifest.json").read_bytes()
