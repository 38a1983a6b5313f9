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

_PATH_METAVARS = {"DIR": "dir"} | dict.fromkeys(
    ("A", "B", "BASE", "CONFIG", "DONOR", "FILE", "MODEL", "OUT"), "file"
)
"""Metavariables that stand for paths, with their type of shell completion in click."""

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
    """A positional parameter. ``parser`` converts the text to a value, or raises
    `click.BadParameter`."""

    metavar: str
    help: str = ""
    parser: Parser | None = None
    completions: Callable[[], Iterable[str]] | None = None
    """Returns the words for shell completion; see `_shell_completion`."""


class Option:
    """A named option: ``names``, or by default the parameter's name with dashes.

    ``min`` is the minimum of an integer; with ``count``, the value is the number of
    times the option is given.
    """

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        help: str = "",
        parser: Parser | None = None,
        min: int | None = None,
        count: bool = False,
        completions: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.names = names
        self.metavar = metavar
        self.help = help
        self.parser = parser
        self.min = min
        self.count = count
        self.completions = completions


class _Argument(click.Argument):
    help_text = ""


class _IntegerType(click.IntRange):
    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            found: int = super().convert(value, param, ctx)
        except click.BadParameter as error:
            number = isinstance(value, int) or re.fullmatch(r"[+-]?\d+", str(value).strip())
            wanted = "a whole number" if self.min is None else f"{self.min} or more"
            if not number and self.min is not None:
                wanted = f"a whole number, {wanted}"
            raise click.BadParameter(f"{value} must be {wanted}", ctx, param) from error
        return found


class Command(click.Command):
    """A command whose help explains its arguments too."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = [each for each in self.params if isinstance(each, _Argument) and each.help_text]
        rows = [(each.make_metavar(ctx), each.help_text) for each in arguments]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


@contextlib.contextmanager
def _converted_interrupts() -> Iterator[None]:
    """Turn KeyboardInterrupt into `Interrupted`; click would print an empty line for the former."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted from stop


class Commands(click.Group):
    """The commands of a package: each of ``names`` is a function in a module of the same name.

    Dashes in names become underscores. More commands can be added.
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
        with _converted_interrupts():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _converted_interrupts():
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
        group, *marks = _type_and_marks(hints[parameter.name])
        if is_dataclass(group):
            groups[parameter.name] = group
            params += _group_params(group, HIDDEN in marks)
        else:
            params.append(_param(parameter.name, hints[parameter.name], parameter.default))

    def call(**given: Any) -> None:
        for group, kind in groups.items():
            given[group] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        function(**given)

    return Command(name, callback=call, params=params, help=inspect.getdoc(function))


def _group_params(group: Any, hidden: bool) -> Iterator[click.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield _param(field.name, hints[field.name], default, hidden)


def _type_and_marks(hint: Any) -> tuple[Any, ...]:
    """A type and the annotations that are attached to it."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _param(name: str, hint: Any, default: Any, hidden: bool = False) -> click.Parameter:
    kind, declaration = _type_and_marks(hint)[:2]
    members = [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        (kind,) = members
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
    required = default is inspect.Parameter.empty
    if isinstance(declaration, Argument):
        argument = _Argument(
            [name],
            metavar=declaration.metavar,
            required=required,
            nargs=-1 if several else 1,
            type=declaration.parser or kind,
            callback=_list_or_none if several else None,
            shell_complete=_shell_completion(declaration),
            **({} if required else {"default": default}),
        )
        if declaration.help:
            argument.help_text = declaration.help + ("  [required]" if required else "")
        return argument
    shown = (
        default is not None and default is not False and not declaration.count and kind is not bool
    )
    settings: dict[str, Any] = {"type": declaration.parser or kind}
    if declaration.min is not None:
        settings["type"] = _IntegerType(min=declaration.min)
    if declaration.count:
        settings = {"count": True}
    elif kind is bool:
        settings = {"is_flag": True}
    return click.Option(
        [name, *(declaration.names or (f"--{name.replace('_', '-')}",))],
        default=default,
        show_default=shown,
        multiple=several,
        metavar=declaration.metavar,
        help=declaration.help,
        hidden=hidden,
        callback=_list_or_none if several else None,
        shell_complete=_shell_completion(declaration),
        **settings,
    )


def _shell_completion(
    declaration: Argument | Option,
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]] | None:
    """Shell completion of a parameter: its own words, the choices in its metavariable, or paths."""
    kind = re.sub(r"[\[\].]|gguf", "", declaration.metavar or "")
    if declaration.completions is None and "|" not in kind and kind not in _PATH_METAVARS:
        return None

    def complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
        if kind in _PATH_METAVARS:
            return [CompletionItem(begun, type=_PATH_METAVARS[kind])]
        completions = (
            kind.split("|") if declaration.completions is None else declaration.completions()
        )
        return [CompletionItem(word) for word in completions if word.startswith(begun)]

    return complete


def _list_or_none(ctx: click.Context, param: click.Parameter, value: Any) -> list[Any] | None:
    """The values of a repeatable option or argument; ``None`` if there are none."""
    return list(value) if value else None
