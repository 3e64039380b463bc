"""The peers, in an environment of their own in the work folder."""

import os
import subprocess
import sys
from pathlib import Path

LLAMA, IK_LLAMA = "llama-cpp-python==0.3.36", "ik-llama-cpp-python==0.1.5"
TOOLS = ("numpy", "gguf", "typing-extensions", "diskcache", "jinja2")
"""What writes and reads GGUF, and what the packages import."""

FLAGS = f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF '-DCMAKE_CXX_FLAGS=-include {Path(__file__).with_name('tile_config.h')}'"
"""llama.cpp for this very processor, without its image models, and with AMX that works under older compilers."""


def python(work: Path) -> Path:
    return work / "venv/bin/python"


def install(work: Path, wheels: Path | None) -> None:
    """Packages come from the folder `wheels` alone where one is given. Prints what could not be installed, and why."""
    if not python(work).exists():
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    source = [] if wheels is None else ["--no-index", "--find-links", wheels.resolve()]
    _pip(work, *source, *TOOLS)
    _pip(work, *source, "--no-deps", IK_LLAMA)
    # A cached build may have been made with other flags.
    _pip(work, *source, "--no-deps", "--no-cache-dir", LLAMA)


def _pip(work: Path, *arguments: object) -> None:
    packages = [word for word in map(str, arguments) if "==" in word] or TOOLS
    command = [python(work), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    environment = os.environ | {"CMAKE_ARGS": FLAGS}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "")
        print(f"not installed: {', '.join(packages)}: {reason}", flush=True)


def has(executable: Path | str, module: str) -> bool:
    """Whether that Python finds a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return Path(executable).exists() and subprocess.run([executable, "-c", code]).returncode == 0
