"""The ``vramcalc`` command: what it says itself, and how errors end it.

Exit status: 0 something fits (or nothing was asked to fit), 1 nothing fits, a trace differs or a measured job failed,
2 bad input, 70 a bug in vramcalc, 130 interrupted.
"""

import sys
from typing import Annotated, Any, NoReturn

import typer

from vramcalc.cli.bugs import end_with
from vramcalc.cli.commands import Group
from vramcalc.cli.terminal import print_error, print_text
from vramcalc.errors import DoesNotFit, VramcalcError
from vramcalc.version import __version__

app = typer.Typer(
    name="vramcalc",
    cls=Group,
    help="How much GPU memory a fine-tuning run takes, where every byte goes, and whether it fits.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""click's, or that of the copy of click that newer releases of typer carry."""


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print_text(f"vramcalc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print_text(context.get_help())


def _fail(message: str, status: int) -> NoReturn:
    print_error(f"vramcalc: {message}")
    sys.exit(status)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit status."""
    try:
        status = app(prog_name="vramcalc", standalone_mode=False)
    except DoesNotFit as err:
        _fail(str(err), 1)
    except VramcalcError as err:
        _fail(str(err), 2)
    except _UsageError as err:
        _fail(_with_help(err), 2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as err:
        end_with(err)
    sys.exit(status if isinstance(status, int) else 0)


def _with_help(err: Any) -> str:
    """A usage error, and where the usage is told."""
    message = err.format_message().strip()
    stop = "" if message.endswith((".", "?", "!")) else "."
    command = err.ctx.command_path if err.ctx else "vramcalc"
    return f"{message}{stop} See '{command} --help'."
