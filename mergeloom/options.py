"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from mergeloom.command_line import Argument, Option
from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.gc_pause import collection_spared
from mergeloom.engine.base.records import dataclass

if TYPE_CHECKING:
    from mergeloom.api import Observer
    from mergeloom.results import PlannedMerge


def read_path(text: str | Path) -> Path:
    """A path from the command line, with ``~`` for the home directory.

    Raises:
        click.BadParameter: it is empty, or not a path.
    """
    from mergeloom.arguments import path_of

    try:
        return path_of(text, "it")
    except LoomError as error:
        raise click.BadParameter(str(error)) from error


def optional_path(text: str | Path | None) -> Path | None:
    """As `read_path`; ``None`` stays ``None``."""
    return None if text is None else read_path(text)


def html_path(text: str | Path | None) -> Path | None:
    """The path of an HTML page; checked before the command starts, as it is written at the end.

    Raises:
        LoomError: its folder does not exist, or it is a folder itself.
    """
    path = optional_path(text)
    if path is None:
        return None
    if os.path.isdir(path):
        raise LoomError(f"--html '{path}' is a folder", remedy="name a file in it")
    if not os.path.isdir(path.parent):
        raise LoomError(
            f"--html '{path}': there is no folder '{path.parent}'", remedy="make it first"
        )
    return path


def method_names() -> tuple[str, ...]:
    """The names of all merge methods, for shell completion."""
    from mergeloom.methods import registry

    return tuple(registry.names())


Config = Annotated[
    Path,
    Argument(
        metavar="CONFIG",
        help="The merge configuration (YAML); - reads it from stdin.",
        parser=read_path,
    ),
]
OutputPath = Annotated[
    Path, Argument(metavar="OUT", help="The directory to merge into.", parser=read_path)
]
HtmlFile = Annotated[
    Path | None,
    Option(
        "--html",
        metavar="FILE",
        help="Write the report to FILE, one page for a browser.",
        parser=html_path,
    ),
]
Ram = Annotated[
    str | None, Option(metavar="SIZE", help="Memory budget. [default: 4/5 of the available]")
]
Threads = Annotated[
    int | None, Option(min=1, metavar="N", help="Compute threads. [default: all cores]")
]
MergekitDevice = Annotated[
    str | None, Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")
]
MergekitQuiet = Annotated[
    bool, Option("--quiet/--no-quiet", "-q", help="Show nothing but warnings and errors.")
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]


@dataclass(frozen=True)
class ModelSearch:
    """Options that say where to find models."""

    model_dir: Annotated[
        list[str] | None,
        Option("--model-dir", metavar="ID=PATH", help="Take model ID from PATH; repeatable."),
    ] = None
    search_dir: Annotated[
        list[Path] | None,
        Option(
            "--search-dir",
            metavar="DIR",
            help="A folder of models; repeatable.",
            parser=read_path,
        ),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of the Python API.

        Raises:
            LoomError: as the other properties.
        """
        return {"model_dirs": self.model_dirs, "search": self.folders}

    @property
    def model_dirs(self) -> dict[str, Path]:
        """Directories by model.

        Raises:
            LoomError: one is not of the form ``ID=PATH``.
        """
        from mergeloom.arguments import path_of

        result = {}
        for text in self.model_dir or []:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise LoomError(f"--model-dir '{text}'", remedy="write ID=PATH")
            result[name] = path_of(path, "--model-dir")
        return result

    @property
    def folders(self) -> list[Path]:
        """Folders to search.

        Raises:
            LoomError: a folder does not exist.
        """
        for folder in self.search_dir or []:
            if not folder.is_dir():
                raise LoomError(f"--search-dir '{folder}' is not a directory")
        return self.search_dir or []


@dataclass(frozen=True)
class OutputOptions:
    """Options that change the output."""

    settings: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="PATH=VALUE",
            help="Override a value of CONFIG, such as parameters.t=0.3; repeatable.",
        ),
    ] = None
    seed: Annotated[int, Option(metavar="N", help="Seed of methods that draw at random.")] = 0
    max_shard_size: Annotated[
        str, Option("--max-shard-size", metavar="SIZE", help="Largest output shard.")
    ] = "5GB"
    allow_truncated_embeddings: Annotated[
        bool,
        Option(
            "--allow-truncated-embeddings",
            help="If vocabularies differ, keep the common leading rows.",
        ),
    ] = False
    allow_different_architectures: Annotated[
        bool,
        Option(
            "--allow-different-architectures",
            help="Write layers that the output's configuration does not describe.",
        ),
    ] = False
    strict: Annotated[
        bool, Option("--strict", help="Refuse unknown keys and parameters in CONFIG.")
    ] = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of the Python API."""
        return {**_fields(self), "settings": self.settings or ()}


@dataclass(frozen=True)
class ResourceOptions:
    """Options for memory, threads and devices; none of them changes a byte of the output."""

    ram: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="Memory budget of the whole process, as 8GiB. [default: 4/5 of the available]",
        ),
    ] = None
    threads: Threads = None
    device: Annotated[str, Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")] = (
        "auto"
    )
    vram: Annotated[
        str | None,
        Option(metavar="SIZE", help="Memory budget on each device. [default: 4/5 of the free]"),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of the Python API."""
        return _fields(self)


def _fields(group: OutputOptions | ResourceOptions) -> dict[str, Any]:
    return {field.name: getattr(group, field.name) for field in fields(group)}


def plan_from_options(
    config: Path,
    search: ModelSearch,
    output_options: OutputOptions,
    resources: ResourceOptions,
    observer: Observer,
    output: Path | None = None,
) -> PlannedMerge:
    """Plan a merge with options of the command line."""
    from mergeloom import api

    if (
        output is not None
        and os.path.isfile(output)
        and not os.path.isfile(config)
        and str(config) != "-"
    ):
        raise LoomError(
            f"'{config}' is not a file, but '{output}' is",
            remedy="the configuration comes first, then the output",
        )
    with collection_spared():
        return api.plan(
            config,
            **resources.arguments,
            **output_options.arguments,
            **search.arguments,
            observer=observer,
            output=output,
        )
