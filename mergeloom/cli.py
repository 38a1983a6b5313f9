"""The command line: runs the commands of `mergeloom.commands` and prints errors as one line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import click

from mergeloom import streams
from mergeloom.command_line import Argument, Commands, Interrupted, NoSuchCommand, command_of
from mergeloom.engine.base.errors import LoomError, RunError, is_memory_short, memory_short
from mergeloom.engine.base.suggest import nearest
from mergeloom.packages import missing_package
from mergeloom.printer import AnswerLost, print_to_stderr

COMMANDS = (
    "init",
    "plan",
    "merge",
    "transplant",
    "extract",
    "status",
    "report",
    "explain",
    "inspect",
    "diff",
    "verify",
    "methods",
    "schema",
    "prepare",
    "export",
    "clean",
    "mergekit-yaml",
    "mergekit-pytorch",
)


def _global_options(debug: bool) -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        print(context.get_help())
        context.exit(2)


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from mergeloom.version import VERSION

        print(f"mergeloom {VERSION}")
        context.exit()


def show_help(
    command: Annotated[str | None, Argument(metavar="[COMMAND]")] = None,
) -> None:
    """Show the help of a command."""
    context = click.get_current_context().find_root()
    if command is None:
        print(context.get_help())
        return
    found = app.get_command(context, command)
    if found is None:
        raise NoSuchCommand(command, COMMANDS, context)
    print(found.get_help(click.Context(found, parent=context, info_name=command)))


app = Commands(
    "mergeloom.commands",
    COMMANDS,
    name="mergeloom",
    help="Merge language models that do not fit in memory.",
    callback=_global_options,
    invoke_without_command=True,
    params=[
        click.Option(["--debug"], is_flag=True, help="Show tracebacks."),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_command(command_of(show_help, "help"))


_INTERRUPTED = 130


def main() -> NoReturn:
    """The entry point of the program: runs a command and exits."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    streams.prepare()
    status = run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the stream is closed or full
            stream.flush()
    if "torch" in sys.modules:  # skip its tear-down, which takes a second
        os._exit(status)
    streams.detach_unwritable()
    sys.exit(status)


def run() -> int:
    """Run the command in ``sys.argv`` and return its exit status; errors are printed as one
    line."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    try:
        return int(app(prog_name="mergeloom", standalone_mode=False) or 0)
    except click.UsageError as error:
        return _report_error(_usage_error(error))
    except LoomError as error:
        if debug:
            raise
        return _report_error(error)
    except Interrupted as stop:
        print_to_stderr(f"interrupted; {stop}" if str(stop) else "interrupted")
        return _INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        print_to_stderr("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ImportError) and (missing := missing_package(error)) is not None:
            return _report_error(missing)
        if is_memory_short(error):
            return _report_error(memory_short())
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return _report_error(RunError(f"internal error: {reason} (--debug shows where)"))


class UsageError(LoomError):
    """An invalid command line."""


def _usage_error(error: click.UsageError) -> UsageError:
    """The error for an invalid command line: what is wrong, and how to correct it."""
    named = [name for name in sys.argv[1:2] if name in COMMANDS]  # click forgets which one it was
    command = error.ctx.command_path if error.ctx is not None else " ".join(["mergeloom", *named])
    help_line = f"'{command} --help' shows how it is used"
    if isinstance(error, NoSuchCommand):
        from mergeloom.mergekit_flags import MERGEKIT_COMMANDS

        advice = (
            MERGEKIT_COMMANDS.get(error.name) or _suggestion(error.known, error.name) + help_line
        )
        if os.path.isfile(error.name):
            advice = f"'{app.name} plan {error.name}' shows the merge, '{app.name} merge "
            advice += f"{error.name} OUT' runs it"
        return UsageError(f"there is no command '{error.name}'", remedy=advice)
    synopsis = "" if error.ctx is None else _synopsis(error.ctx)
    if isinstance(error, click.NoSuchOption):
        bare = {each.lstrip("-"): each for each in error.possibilities or ()}
        meant = _suggestion(bare, error.option_name.lstrip("-"), "--") or synopsis
        return UsageError(f"there is no option '{error.option_name}'", remedy=meant + help_line)
    if isinstance(error, click.MissingParameter) or "unexpected extra" in error.message:
        help_line = synopsis + help_line
    what = error.format_message().strip().rstrip(".")
    return UsageError(f"{what[:1].lower()}{what[1:]}", remedy=help_line)


def _synopsis(context: click.Context) -> str:
    """The form of a command with its arguments; empty if it takes none."""
    pieces = [
        param.make_metavar(context)
        for param in context.command.params
        if isinstance(param, click.Argument)
    ]
    return f"it is called as '{' '.join([context.command_path, *pieces])}'; " if pieces else ""


def _suggestion(known: Iterable[str], name: str, sign: str = "") -> str:
    near = nearest(name, known)
    return f"did you mean '{sign}{near}'? " if near else ""


def _report_error(error: LoomError) -> int:
    """Print an error on stderr, and as a JSON document if requested; returns the exit status."""
    for finding in error.findings:
        print_to_stderr(f"{finding.severity.value}: {finding}")
    lines = "--json-progress" in sys.argv
    if (lines or "--json" in sys.argv) and not isinstance(error, AnswerLost):
        from mergeloom.report.errors import error_report
        from mergeloom.report.json import encode

        with contextlib.suppress(OSError, ValueError):
            print(encode(error_report(error), None if lines else 2))
            sys.stdout.flush()
    return error.exit_code


def _on_sigterm(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
