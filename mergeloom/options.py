"""The options of the command line, each written once; commands take them as groups.

A command names a group among its parameters, and `grouped` puts the group's options in its place:

    @grouped
    def plan(config: Config, planning: Planning, output: Answer) -> None: ...
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from mergeloom.engine.base.errors import LoomError

if TYPE_CHECKING:
    from mergeloom.api import Observer
    from mergeloom.results import PlannedMerge


HIDDEN = "hidden"
"""Marks a group whose options are understood and not in the help: ``Annotated[Group, HIDDEN]``."""


def read_path(text: str | Path) -> Path:
    """A path as the command line gives it: ``~`` is the home directory, nothing is no path."""
    from mergeloom.arguments import path_of

    try:
        return path_of(text, "this")
    except LoomError as error:
        raise typer.BadParameter(str(error)) from error


def optional_path(text: str | Path | None) -> Path | None:
    """The same of what may be left out."""
    return None if text is None else read_path(text)


Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="The merge configuration (YAML); - reads it from stdin.",
        parser=read_path,
    ),
]
OutputArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The directory to merge into.", parser=read_path)
]
HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report to FILE, one page for a browser.",
        parser=optional_path,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@dataclass(frozen=True)
class Finding:
    """Where models are."""

    model_dir: Annotated[
        list[str] | None,
        typer.Option("--model-dir", metavar="ID=PATH", help="Take model ID from PATH; repeatable."),
    ] = None
    search_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--search-dir",
            metavar="DIR",
            help="A folder that holds models; repeatable.",
            parser=read_path,
        ),
    ] = None

    @property
    def model_dirs(self) -> dict[str, Path]:
        """Directories by the models that they are given for.

        Raises:
            LoomError: one is not written as ``ID=PATH``.
        """
        from mergeloom.arguments import path_of

        result = {}
        for text in self.model_dir or []:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise LoomError(f"--model-dir '{text}': write ID=PATH")
            result[name] = path_of(path, "--model-dir")
        return result

    @property
    def folders(self) -> list[Path]:
        return self.search_dir or []


@dataclass(frozen=True)
class Meaning:
    """What changes the output."""

    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Use VALUE for what CONFIG has at PATH, as parameters.t=0.3; repeatable.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the methods that draw at random.")
    ] = 0
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest output shard.")
    ] = "5GB"
    allow_truncated_embeddings: Annotated[
        bool,
        typer.Option(
            "--allow-truncated-embeddings",
            help="Where vocabularies differ, keep the common leading rows.",
        ),
    ] = False
    allow_different_architectures: Annotated[
        bool,
        typer.Option(
            "--allow-different-architectures",
            help="Write layers that the output's configuration does not describe.",
        ),
    ] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unknown keys and parameters in CONFIG.")
    ] = False


@dataclass(frozen=True)
class Resources:
    """What a merge may use; none of it changes a byte of the output."""

    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory budget of the whole process, as 8GiB. [default: 4/5 of the available]",
        ),
    ] = None
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compute threads. [default: all cores]")
    ] = None
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")
    ] = "auto"
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory budget on each device. [default: 4/5 of the free]"
        ),
    ] = None


def planned(
    config: Path,
    finding: Finding,
    meaning: Meaning,
    resources: Resources,
    observer: Observer,
    output: Path | None = None,
) -> PlannedMerge:
    """Plan as the command line asks."""
    from mergeloom import api

    return api.plan(
        config,
        ram=resources.ram,
        threads=resources.threads,
        device=resources.device,
        vram=resources.vram,
        seed=meaning.seed,
        max_shard_size=meaning.max_shard_size,
        allow_truncated_embeddings=meaning.allow_truncated_embeddings,
        allow_different_architectures=meaning.allow_different_architectures,
        strict=meaning.strict,
        settings=meaning.settings or (),
        model_dirs=finding.model_dirs,
        search=finding.folders,
        observer=observer,
        output=output,
    )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the options of each group in place of the group.

    Those of a group that is `HIDDEN` are not in its help.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    hidden: set[str] = set()
    for name, kind in hints.items():
        group, *marks = get_args(kind) if get_origin(kind) is Annotated else [kind]
        if is_dataclass(group):
            groups[name] = group
            hidden |= {name} if HIDDEN in marks else set()

    def flat(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    def parameters() -> Iterator[inspect.Parameter]:
        for name, parameter in inspect.signature(command).parameters.items():
            if name not in groups:
                yield parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])
                continue
            types = get_type_hints(groups[name], include_extras=True)
            for field in fields(groups[name]):
                shown, option = get_args(types[field.name])[:2]
                if name in hidden:
                    option = copy.copy(option)
                    option.hidden = True
                yield inspect.Parameter(
                    field.name,
                    parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=Annotated[shown, option],
                )

    found = list(parameters())
    told: Any = flat
    told.__name__, told.__doc__ = command.__name__, command.__doc__
    told.__signature__ = inspect.Signature(found)
    told.__annotations__ = {each.name: each.annotation for each in found}
    return flat
