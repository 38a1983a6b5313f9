"""Commands from functions: annotations of parameters define arguments and options.

    def inspect(
        model: Annotated[str, Argument(metavar="MODEL", help="A directory or a hub id.")],
        finding: Finding,
        tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    ) -> None: ...

A parameter annotated with a dataclass is a group: its fields are options, and the function gets the
record. Only the called command is imported, and only its options are built.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

HIDDEN = "hidden"
"""Marks a group whose options are not shown in the help: ``Annotated[Group, HIDDEN]``."""

_PATHS = {"DIR": "dir"} | dict.fromkeys(
    ("A", "B", "BASE", "CONFIG", "DONOR", "FILE", "MODEL", "OUT"), "file"
)
"""Metavariables of paths, and their shell completion: directories only, or files too."""

Parser = Callable[[str], Any]


class Interrupted(Exception):
    """A command was interrupted; the message, if any, says how to continue."""


class NoSuchCommand(click.UsageError):
    """There is no command ``name`` among those that are ``known``."""

    def __init__(self, name: str, known: Sequence[str], context: click.Context) -> None:
        super().__init__(f"there is no command '{name}'", context)
        self.name = name
        self.known = known


class Argument(NamedTuple):
    """A positional parameter. ``parser`` converts the text to its value, and raises
    `click.BadParameter` if it cannot."""

    metavar: str
    help: str = ""
    parser: Parser | None = None
    words: Callable[[], Iterable[str]] | None = None
    """Candidates for shell completion; see `_completed`."""


class Option:
    """A named option: ``names``, or by default the parameter's name with dashes.

    ``min`` is the minimum of an integer; ``count`` makes the value the number of occurrences.
    """

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        help: str = "",
        parser: Parser | None = None,
        min: int | None = None,
        count: bool = False,
        words: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.names = names
        self.metavar = metavar
        self.help = help
        self.parser = parser
        self.min = min
        self.count = count
        self.words = words


class _Argument(click.Argument):
    about = ""
    """The help text."""


class _Whole(click.IntRange):
    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            found: int = super().convert(value, param, ctx)
        except click.BadParameter as error:
            wanted = f"{self.min} or more" if self.min is not None else "a whole number"
            raise click.BadParameter(f"{value} must be {wanted}", ctx, param) from error
        return found


class Command(click.Command):
    """A command whose help explains its arguments too."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = [each for each in self.params if isinstance(each, _Argument) and each.about]
        rows = [(each.make_metavar(ctx), each.about) for each in arguments]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


@contextlib.contextmanager
def _interruptions() -> Iterator[None]:
    """Raise `Interrupted` for a KeyboardInterrupt, for which click would print an empty line."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted from stop


class Commands(click.Group):
    """The commands of a package: ``names``, each a function of that name in a module of that name.

    Dashes become underscores. Further commands can be added.
    """

    def __init__(self, package: str, names: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._package = package
        self._names = names

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._names, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._names and cmd_name not in self.commands:
            name = cmd_name.replace("-", "_")
            module = import_module(f"{self._package}.{name}")
            return command_of(getattr(module, name), cmd_name)
        return self.commands.get(cmd_name)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _interruptions():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _interruptions():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise NoSuchCommand(args[0], known, ctx)
        return super().resolve_command(ctx, args)


def command_of(function: Callable[..., None], name: str) -> Command:
    """A command that calls ``function`` with the values from the command line."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    params: list[click.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        group, *marks = _parts(hints[parameter.name])
        if is_dataclass(group):
            groups[parameter.name] = group
            params += _members(group, HIDDEN in marks)
        else:
            params.append(_param(parameter.name, hints[parameter.name], parameter.default))

    def call(**given: Any) -> None:
        for group, kind in groups.items():
            given[group] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        function(**given)

    return Command(name, callback=call, params=params, help=inspect.getdoc(function))


def _members(group: Any, hidden: bool) -> Iterator[click.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield _param(field.name, hints[field.name], default, hidden)


def _parts(hint: Any) -> tuple[Any, ...]:
    """A type and its annotations."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _param(name: str, hint: Any, default: Any, hidden: bool = False) -> click.Parameter:
    kind, about = _parts(hint)[:2]
    members = [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        (kind,) = members
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
    required = default is inspect.Parameter.empty
    if isinstance(about, Argument):
        argument = _Argument(
            [name],
            metavar=about.metavar,
            required=required,
            nargs=-1 if several else 1,
            type=about.parser or kind,
            callback=_listed if several else None,
            shell_complete=_completed(about),
            **({} if required else {"default": default}),
        )
        if about.help:
            argument.about = about.help + ("  [required]" if required else "")
        return argument
    shown = default is not None and default is not False and not about.count and kind is not bool
    settings: dict[str, Any] = {"type": about.parser or kind}
    if about.min is not None:
        settings["type"] = _Whole(min=about.min)
    if about.count:
        settings = {"count": True}
    elif kind is bool:
        settings = {"is_flag": True}
    return click.Option(
        [name, *(about.names or (f"--{name.replace('_', '-')}",))],
        default=default,
        show_default=shown,
        multiple=several,
        metavar=about.metavar,
        help=about.help,
        hidden=hidden,
        callback=_listed if several else None,
        shell_complete=_completed(about),
        **settings,
    )


def _completed(
    about: Argument | Option,
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]] | None:
    """Shell completion of a parameter: its words, the choices listed in its metavariable, or a path
    if the metavariable is one."""
    kind = re.sub(r"[\[\].]|gguf", "", about.metavar or "")
    if about.words is None and "|" not in kind and kind not in _PATHS:
        return None

    def complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
        if kind in _PATHS:
            return [CompletionItem(begun, type=_PATHS[kind])]
        words = kind.split("|") if about.words is None else about.words()
        return [CompletionItem(word) for word in words if word.startswith(begun)]

    return complete


def _listed(ctx: click.Context, param: click.Parameter, value: Any) -> list[Any] | None:
    """The values of a repeatable option; ``None`` if it was not given."""
    return list(value) if value else None
