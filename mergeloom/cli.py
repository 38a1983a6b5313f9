"""The command line. Data goes to stdout, everything for people that is no answer to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mergeloom.engine.base.errors import MEMORY_SHORT, LoomError, is_memory_short

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge

app = typer.Typer(
    name="mergeloom",
    help="Merge language models that do not fit in memory.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The merge configuration (YAML).")]
Ram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory budget of the whole process. [default: 4/5 of the available]"
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Compute threads. [default: all cores]")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")]
Vram = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory budget on each device. [default: 4/5 of the free]"),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the methods that draw at random.")]
ShardSize = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest output shard.")
]
ModelDirs = Annotated[
    list[str] | None,
    typer.Option("--model-dir", metavar="ID=PATH", help="Take model ID from PATH; repeatable."),
]
Search = Annotated[
    list[Path] | None,
    typer.Option("--search-dir", metavar="DIR", help="A folder that holds models; repeatable."),
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--allow-truncated-embeddings",
        help="Where vocabularies differ, keep the common leading rows.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse unknown keys and parameters in CONFIG.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from mergeloom.api import program

        print(f"mergeloom {program()['mergeloom']}")
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


@app.command()
def plan(
    config: Config,
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Say what state it is in.")
    ] = None,
    ram: Ram = None,
    threads: Threads = None,
    device: Device = "auto",
    vram: Vram = None,
    seed: Seed = 0,
    max_shard_size: ShardSize = "5GB",
    model_dir: ModelDirs = None,
    search_dir: Search = None,
    allow_truncated_embeddings: Truncate = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Show what a merge would do: layers, memory, bytes. Reads no weights."""
    planned = _planned(
        config,
        ram,
        threads,
        device,
        vram,
        seed,
        max_shard_size,
        model_dir,
        search_dir,
        allow_truncated_embeddings,
        strict,
    )
    if output is not None:
        from mergeloom.api import check_apart

        check_apart(planned, output)
        _say_state(output)
    if as_json:
        _print_json(planned.document())
    else:
        from mergeloom.report.terminal import render_plan

        _print(render_plan(planned))


@app.command()
def merge(
    config: Config,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to merge into.")],
    ram: Ram = None,
    threads: Threads = None,
    device: Device = "auto",
    vram: Vram = None,
    seed: Seed = 0,
    max_shard_size: ShardSize = "5GB",
    model_dir: ModelDirs = None,
    search_dir: Search = None,
    allow_truncated_embeddings: Truncate = False,
    strict: Strict = False,
    io: Annotated[
        str, typer.Option(metavar="auto|direct|buffered", help="How files are accessed.")
    ] = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an earlier run left in OUT.")
    ] = False,
    check: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Compute N random tensors again in another way."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
    as_json: Json = False,
) -> None:
    """Merge into OUT; the same command again continues after an interruption."""
    from mergeloom import api
    from mergeloom.engine.storage.source import IOMode

    if io not in [mode.value for mode in IOMode]:
        raise LoomError(f"--io '{io}' is unknown: choose auto, direct or buffered")
    planned = _planned(
        config,
        ram,
        threads,
        device,
        vram,
        seed,
        max_shard_size,
        model_dir,
        search_dir,
        allow_truncated_embeddings,
        strict,
    )
    api.check_apart(planned, output)
    with _shown(planned, quiet) as observer:
        try:
            result = api.merge(
                planned, output, io=io, restart=restart, check=check, observer=observer
            )
        except KeyboardInterrupt as stop:
            raise _Interrupted(f"the same command continues '{output}' where it stopped") from stop
    if as_json:
        _print_json(result.document())
    elif not quiet:
        from mergeloom.report.terminal import error_console, render_checked, render_outcome

        error_console().print(render_outcome(result.outcome, planned, str(output)))
        if result.checked is not None:
            error_console().print(render_checked(result.checked))


@app.command()
def explain(
    config: Config,
    tensor: Annotated[
        str | None,
        typer.Argument(metavar="[TENSOR]", help="An output tensor, or a part of its name."),
    ] = None,
    model_dir: ModelDirs = None,
    search_dir: Search = None,
    allow_truncated_embeddings: Truncate = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Show where output tensors come from, and which entry of CONFIG set each parameter."""
    from mergeloom.commands import explain as explaining

    planned = _planned(
        *(config, None, None, "cpu", None),
        *(0, "5GB", model_dir, search_dir, allow_truncated_embeddings),
        strict=strict,
    )
    found = explaining.select(planned, tensor)
    if as_json:
        _print_json(explaining.document(found, planned))
    else:
        _print(explaining.render(found, planned))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory or a hub id.")],
    model_dir: ModelDirs = None,
    search_dir: Search = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show tensors, layers, types and sizes of a checkpoint, from its headers."""
    from mergeloom.commands import inspect as inspecting

    found = inspecting.inspect_model(model, _model_dirs(model_dir), search_dir or [], _downloading)
    if as_json:
        _print_json(inspecting.document(found))
    else:
        _print(inspecting.render(found, tensors))


@app.command()
def verify(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A directory merged into.")],
    as_json: Json = False,
) -> None:
    """Compare the tensors of a finished or interrupted merge with their recorded digests."""
    from mergeloom.commands import verify as verifying

    found = verifying.verify_output(output)
    if as_json:
        _print_json(verifying.document(found))
    else:
        _print(verifying.render(found))
    if not found.is_sound:
        raise typer.Exit(1)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method.")] = None,
    as_json: Json = False,
) -> None:
    """List the merge methods, or describe one."""
    from mergeloom.methods import registry
    from mergeloom.report.documents import method_document

    found = [registry.get(each) for each in ([name] if name else registry.names())]
    if as_json:
        documents = [method_document(method) for method in found]
        _print_json(documents[0] if name else {"methods": documents})
        return
    from mergeloom.report.terminal import render_method, render_methods

    _print(render_method(found[0]) if name else render_methods(found))


_INTERRUPTED = 130


def main() -> NoReturn:
    """The program's entry: runs a command and ends the process."""
    signal.signal(signal.SIGTERM, _terminated)
    status = _status()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):  # nobody listens; it is closed
            stream.flush()
    if "torch" in sys.modules:  # a second would go by until it has been taken apart
        os._exit(status)
    sys.exit(status)


def _status() -> int:
    """Run a command and turn errors into one line and an exit code, which is the result."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    try:
        status = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
        if status == _INTERRUPTED:  # which typer makes of an interrupt
            _complain("interrupted")
        return status
    except _UsageError as error:
        _complain(f"error: {_usage(error)}")
        return 2
    except LoomError as error:
        if debug:
            raise
        for finding in error.findings:
            _complain(f"{finding.severity.value}: {finding}")
        return error.exit_code
    except _Interrupted as stop:
        _complain(f"interrupted; {stop}")
        return _INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if debug:
            raise
        if is_memory_short(error):
            _complain(f"error: {MEMORY_SHORT}")
            return 1
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _complain(f"error: this should not happen: {reason} (--debug shows where)")
        return 1


_UsageError: Any = typer.BadParameter.__bases__[0]
"""What is raised for a command line that cannot be understood. (typer names its kinds only.)"""


def _usage(error: Any) -> str:
    """What is wrong with a command line, where, and how to mend it."""
    what = error.format_message().strip().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else app.info.name
    return f"{what}: '{command} --help' shows how it is used"


class _Interrupted(Exception):
    """A merge was interrupted; the message says how it goes on."""


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _planned(
    config: Path,
    ram: str | None,
    threads: int | None,
    device: str,
    vram: str | None,
    seed: int,
    max_shard_size: str,
    model_dir: list[str] | None,
    search_dir: list[Path] | None,
    truncate: bool,
    strict: bool,
) -> PlannedMerge:
    from mergeloom import api

    return api.plan(
        config,
        ram=ram,
        threads=threads,
        device=device,
        vram=vram,
        seed=seed,
        max_shard_size=max_shard_size,
        model_dirs=_model_dirs(model_dir),
        search=search_dir or [],
        allow_truncated_embeddings=truncate,
        strict=strict,
        observer=api.Observer(downloading=_downloading),
    )


def _model_dirs(given: list[str] | None) -> dict[str, Path]:
    result = {}
    for text in given or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise LoomError(f"--model-dir '{text}': write ID=PATH")
        result[name] = Path(path).expanduser()
    return result


def _say_state(output: Path) -> None:
    from mergeloom.engine.output.manifest import DIRECTORY, read_manifest

    if read_manifest(output) is not None:
        _complain(f"'{output}' is a finished merge")
    elif (output / DIRECTORY).is_dir():
        _complain(f"'{output}' holds an interrupted merge")


@contextlib.contextmanager
def _shown(planned: PlannedMerge, quiet: bool) -> Iterator[Any]:
    from mergeloom.api import Observer

    if quiet:
        yield Observer(downloading=_downloading, building=_building)
        return
    from mergeloom.report.progress import ProgressDisplay
    from mergeloom.report.terminal import error_console, render_plan

    console = error_console()
    console.print(render_plan(planned))
    console.print()
    with ProgressDisplay(console, planned.budget_bytes) as display:
        yield Observer(display.begun, display.progressed, _downloading, _building)


def _downloading(name: str) -> None:
    _complain(f"fetching '{name}' from the hub")


def _building(names: frozenset[str]) -> None:
    _complain(f"compiling {', '.join(sorted(names))} for this machine: once, some seconds each")


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _print(renderable: Any) -> None:
    from mergeloom.report.terminal import console

    shown = console()
    if shown.is_terminal:
        shown.print(renderable)
        return
    with shown.capture() as captured:
        shown.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))  # tables are padded


def _complain(message: str) -> None:
    print(message, file=sys.stderr)
