"""YAML that remembers where everything stands, so that every error can point at its line.

Only plain data is accepted: mappings, lists, strings, numbers, booleans, null. No tags, no
duplicate keys, and aliases only as far as the expanded document stays small.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mergeloom.engine.base.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_NAME = 1000
"""Characters of a name, and of a path of keys."""

_MAX_NUMBER = 100
_LISTED = 30
"""Names that a message lists."""
_DIRECTIVE = re.compile(r"^%[A-Z]", re.MULTILINE)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: file, line (from 1) and path of keys (``slices[0].sources``)."""

    file: str
    line: int
    path: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where}: {self.path}" if self.path else where

    def error(self, message: str) -> ConfigError:
        """An error that begins with this place."""
        return ConfigError(f"{self}: {message}")


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a document and its place.

    ``content`` is a scalar, a list of values, or a mapping of strings to values.
    """

    content: Any
    place: Place

    def error(self, message: str) -> ConfigError:
        """An error that begins with this value's place."""
        return self.place.error(message)

    def mapping(self, what: str) -> Mapping[str, Value]:
        """The content as a mapping.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, dict):
            raise self.error(f"{what} must be a mapping, not {self.kind}")
        return self.content

    def items(self, what: str) -> list[Value]:
        """The content as a list.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, list):
            raise self.error(f"{what} must be a list, not {self.kind}")
        return self.content

    def text(self, what: str) -> str:
        """The content as a name: a string of printable characters, not empty.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, str) or not _is_name(self.content):
            raise self.error(f"{what} must be a name, not {self.kind}")
        return self.content

    def plain(self) -> Any:
        """The content without places."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content

    @property
    def kind(self) -> str:
        """What the content is, in words."""
        if isinstance(self.content, dict):
            return "a mapping"
        if isinstance(self.content, list):
            return "a list"
        return "nothing" if self.content is None else _short(repr(self.content))


def load_documents(text: str, file: str) -> list[Value]:
    """All documents of a YAML text; empty ones are left out.

    Raises:
        ConfigError: it is not YAML, or not plain data, or absurdly large.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"'{file}' has {len(text)} characters: too large for a configuration")
    if directive := _DIRECTIVE.search(text):
        line = text.count("\n", 0, directive.start()) + 1
        raise ConfigError(f"{file}:{line}: YAML directives are not allowed: remove the line")
    try:
        _check_nesting(text, file)
        nodes = list(yaml.compose_all(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from error
    reader = _Reader(file)
    values = [reader.value(node, "", 0) for node in nodes]
    return [value for value in values if value.content is not None]


def nearest(name: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the closest valid name, or else the list of them."""
    names = sorted(valid)
    name = name[:MAX_NAME]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else ""


def _check_nesting(text: str, file: str) -> None:
    """Bound depth and size before anything recurses: PyYAML's composer is C and has no bound."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:  # a collection has a start and an end
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise _too_large(Place(file, line, ""))


def _too_large(place: Place) -> ConfigError:
    return place.error("the document is too large or too deep for a configuration")


def _is_name(text: str) -> bool:
    """Whether a message, a terminal and a file name can show ``text`` as it is."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Reader:
    def __init__(self, file: str) -> None:
        self._file = file
        self._count = 0
        self._scalars = _LOADER("")

    def value(self, node: Node, path: str, depth: int) -> Value:
        place = Place(self._file, node.start_mark.line + 1, path)
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH or len(path) > MAX_NAME:
            raise _too_large(Place(self._file, place.line, path[:80]))
        if isinstance(node, MappingNode):
            return Value(self._mapping(node, path, depth), place)
        if isinstance(node, SequenceNode):
            children = enumerate(node.value)
            items = [self.value(child, f"{path}[{i}]", depth + 1) for i, child in children]
            return Value(items, place)
        assert isinstance(node, ScalarNode)
        return Value(self._scalar(node, place), place)

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = Place(self._file, key_node.start_mark.line + 1, path)
            key = self._scalar(key_node, place) if isinstance(key_node, ScalarNode) else None
            name = str(key)
            if key is None or isinstance(key, bool) or len(name) > MAX_NAME:
                raise place.error(f"a key must be a name, not {_short(repr(key))}")
            if name in result:
                raise place.error(f"{name!r} stands here twice")
            shown = name if _is_name(name) else repr(name)
            result[name] = self.value(value_node, f"{path}.{shown}".lstrip("."), depth + 1)
        return result

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        if node.tag not in _PLAIN_TAGS:
            if node.tag.startswith("tag:yaml.org,2002:") and not node.tag.endswith("binary"):
                return node.value  # dates and the like are meant as text
            tag = _short(repr(node.tag))
            raise place.error(f"the tag {tag} is not allowed: write plain values")
        if not node.tag.endswith(":str") and len(node.value) > _MAX_NUMBER:
            raise place.error(f"not a value: {_short(repr(node.value))}")
        try:
            return self._scalars.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise place.error(f"not a value: {_short(repr(node.value))}") from error
