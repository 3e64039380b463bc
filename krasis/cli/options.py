"""Options that several commands share, and the engine they open."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from krasis.cli.console import note, parse_size
from krasis.errors import InputError, UsageError

if TYPE_CHECKING:
    from krasis.runtime.opening import Where
    from krasis.runtime.tokenizer import Tokenizer

Device = Literal["auto", "cpu", "cuda", "reference"]
Kv = Literal["f32", "bf16", "fp8"]
Load = Literal["mapped", "copied"]
Residency = Literal["follow", "static"]
Speculate = Literal["auto", "off"]

DeviceOption = Annotated[Device, typer.Option(help="Where to run; reference is the slow judge of the others.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; one a physical core when not given.")]
KvOption = Annotated[
    Kv | None, typer.Option(help="Precision of cached keys and values; bf16, or f32 on the reference.")
]
VramOption = Annotated[str | None, typer.Option(help="GPU memory to use, such as 16GiB.")]
HeatOption = Annotated[str | None, typer.Option(help="Heat profile of the pack that places experts.")]
ResidencyOption = Annotated[
    Residency | None,
    typer.Option(help="Whether experts on the GPU change with the text, or stay as placed; follow when not given."),
]
LayoutOption = Annotated[str | None, typer.Option(help="Read this layout of the pack; the fastest when not given.")]
LoadOption = Annotated[
    Load, typer.Option(help="Read weights where the pack is mapped, or copy them into memory of their own first.")
]
SpeculateOption = Annotated[
    Speculate | None, typer.Option(help="Draft tokens from the text so far, and check several at once, where it pays.")
]
JobsOption = Annotated[int | None, typer.Option(help="Threads; one a core when not given.")]
TextOption = Annotated[list[Path], typer.Option("--text", metavar="FILE...", help="Text files, UTF-8.")]
# The parser gives an option one value; what follows it lands here, so that `--text A B C` works.
MoreTextArgument = Annotated[list[Path] | None, typer.Argument(hidden=True)]
WindowOption = Annotated[int, typer.Option(help="Tokens that are scored together, from an empty context.")]
TokensOption = Annotated[int | None, typer.Option(help="Use the first N tokens of each file.")]


def checked_jobs(jobs: int | None) -> int | None:
    """The jobs as given. Raises UsageError for an impossible number."""
    if jobs is not None and not 1 <= jobs <= 1024:
        raise UsageError(f"--jobs is {jobs}", expected="1 to 1024")
    return jobs


def check_window(window: int) -> None:
    """Raises UsageError for a window that scores nothing."""
    if window < 2:
        raise UsageError(f"--window is {window}", expected="2 or more")


def check_tokens(tokens: int | None) -> None:
    """Raises UsageError for files cut so short that nothing is scored."""
    if tokens is not None and tokens < 2:
        raise UsageError(f"--tokens is {tokens}", expected="2 or more")


def read_text(path: Path) -> str:
    """A UTF-8 text file. Raises InputError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't read the text: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: byte {error.start}", where=path) from error


def encode_texts(paths: list[Path], tokenizer: "Tokenizer", limit: int | None) -> dict[str, list[int]]:
    """File name (the whole path where two share a name) -> the ids of its first `limit` tokens."""
    check_tokens(limit)
    names = [path.name for path in paths]
    return {
        (str(path) if names.count(path.name) > 1 else path.name): tokenizer.encode(read_text(path), special=False)[
            :limit
        ]
        for path in paths
    }


def show_notes(notes: list[str]) -> None:
    for line in notes:
        note(line)


def running(
    device: Device,
    threads: int | None,
    layout: str | None,
    load: Load,
    vram: str | None,
    kv: Kv | None,
    heat: str | None,
    residency: Residency | None = None,
) -> "Where":
    """What the options of these names say. Raises UsageError for a size that is none."""
    from krasis.runtime.opening import Where

    size = None if vram is None else parse_size(vram)
    return Where(device, threads, layout, load, size, kv, heat, residency)
