"""The command line: commands are in `mergeloom.commands`, errors become one line here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from mergeloom import streams
from mergeloom.commands.clean import clean
from mergeloom.commands.diff import diff
from mergeloom.commands.explain import explain
from mergeloom.commands.export import export
from mergeloom.commands.init import init
from mergeloom.commands.inspect import inspect
from mergeloom.commands.merge import Interrupted, merge
from mergeloom.commands.mergekit_pytorch import mergekit_pytorch
from mergeloom.commands.mergekit_yaml import mergekit_yaml
from mergeloom.commands.methods import methods
from mergeloom.commands.plan import plan
from mergeloom.commands.prepare import prepare
from mergeloom.commands.report import report
from mergeloom.commands.schema import schema
from mergeloom.commands.status import status
from mergeloom.commands.transplant import transplant
from mergeloom.commands.verify import verify
from mergeloom.engine.base.errors import MEMORY_SHORT, LoomError, RunError, is_memory_short
from mergeloom.printer import AnswerLost, complain

app = typer.Typer(
    name="mergeloom",
    help="Merge language models that do not fit in memory.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    *(
        init,
        plan,
        merge,
        transplant,
        status,
        report,
        explain,
        inspect,
        diff,
        verify,
        methods,
        schema,
        prepare,
    ),
    *(export, clean, mergekit_yaml, mergekit_pytorch),
):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from mergeloom.version import VERSION

        print(f"mergeloom {VERSION}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Merge language models that do not fit in memory."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command("help")
def show_help(
    context: typer.Context,
    command: Annotated[str | None, typer.Argument(metavar="[COMMAND]")] = None,
) -> None:
    """Show what a command takes."""
    group: Any = context.find_root().command
    if command is None:
        print(context.find_root().get_help())
        return
    found = group.get_command(context, command)
    if found is None:
        raise typer.BadParameter(f"there is no command '{command}'", context)
    print(found.get_help(type(context)(found, parent=context.find_root(), info_name=command)))


_INTERRUPTED = 130


def main() -> NoReturn:
    """The program's entry: runs a command and ends the process."""
    signal.signal(signal.SIGTERM, _terminated)
    streams.prepare()
    status = _status()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody listens; it is closed or full
            stream.flush()
    if "torch" in sys.modules:  # a second would go by until it has been taken apart
        os._exit(status)
    streams.abandon()
    sys.exit(status)


def _status() -> int:
    """Run a command and turn errors into one line and an exit code, which is the result."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    try:
        status = int(app(standalone_mode=False) or 0)
        if status == _INTERRUPTED:  # which typer makes of an interrupt
            complain("interrupted")
        return status
    except _UsageError as error:
        return _failed(UsageError(_usage(error)))
    except LoomError as error:
        if debug:
            raise
        return _failed(error)
    except Interrupted as stop:
        complain(f"interrupted; {stop}")
        return _INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        if is_memory_short(error):
            return _failed(RunError(MEMORY_SHORT))
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(RunError(f"this should not happen: {reason} (--debug shows where)"))


class UsageError(LoomError):
    """A command line that cannot be understood."""


_UsageError: Any = typer.BadParameter.__bases__[0]
"""What is raised for a command line that cannot be understood. (typer names its kinds only.)"""


def _usage(error: Any) -> str:
    """What is wrong with a command line, where, and how to mend it."""
    what = error.format_message().strip().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else app.info.name
    return f"{what}: '{command} --help' shows how it is used"


def _failed(error: LoomError) -> int:
    """Say what went wrong: a line for people, and a document for programs that asked for one."""
    for finding in error.findings:
        complain(f"{finding.severity.value}: {finding}")
    lines = "--json-progress" in sys.argv
    if (lines or "--json" in sys.argv) and not isinstance(error, AnswerLost):
        from mergeloom.report.errors import error_report
        from mergeloom.report.json import encode

        with contextlib.suppress(OSError, ValueError):
            print(encode(error_report(error), None if lines else 2))
            sys.stdout.flush()
    return error.exit_code


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
