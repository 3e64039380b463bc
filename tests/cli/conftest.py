"""The command line, called in this process where that will do and in its own where it must."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest

from krasis import cli


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object that --json prints."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self):
        """The one line an error is, progress and notes aside."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def krasis(capsys, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["krasis", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(end.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def spawn():
    """Start the command in a process of its own, with pipes."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "krasis", *map(str, arguments)]
        pipe = subprocess.PIPE
        # A shell's background jobs ignore interrupts, and so would what they start.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        processes.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)
        )
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture(scope="session")
def run_tokens(demo_pack):
    """Arguments of a short greedy run. It names the device, as auto has something to say where there is a GPU."""
    return ("run", demo_pack(), "--device", "cpu", "--raw", "--prompt", "def ", "--max-tokens", 24)
