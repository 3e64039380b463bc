"""The command line: arguments, one call, an exit code."""

import os
import sys
from typing import Annotated, NoReturn

import typer
from typer.exceptions import Abort, Exit, TyperException

from krasis import __version__
from krasis.cli import bench, chat, convert, evaluate, inspect, plan, profile_heat, synth, verify
from krasis.cli.console import plain
from krasis.errors import KrasisError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run mixture-of-experts language models that are far larger than the GPU.",
)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("eval")(evaluate.evaluate)
app.command("profile-heat")(profile_heat.profile_heat)
app.command("plan")(plan.plan)
app.command("run")(chat.run)
app.command("bench")(bench.bench)
app.command("synth")(synth.synth)

INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"krasis {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 usage, 3 bad input, 4 does not fit, 130 interrupted."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except Exit as exit_:
        code = exit_.exit_code
    except (KrasisError, TyperException) as error:
        code = _report(error)
    except BrokenPipeError:
        # The reader of our output left; keep the interpreter from complaining while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _report(KrasisError(error.strerror or str(error), where=error.filename or ""))
    sys.exit(code)


def _report(error: KrasisError | TyperException) -> int:
    if os.environ.get("KRASIS_DEBUG") == "1":
        raise error
    message = str(error) if isinstance(error, KrasisError) else error.format_message()
    if message:
        print(f"error: {plain(message)}", file=sys.stderr)
    return error.exit_code
