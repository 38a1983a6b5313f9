"""YAML values with their places, so that every finding can point to a line.

Only plain data is accepted: mappings, lists, strings, numbers, booleans, null. Tags are refused,
and aliases if the expanded document is large. JSON is read as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mergeloom.engine.base.errors import ConfigError, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.findings import Findings

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_NAME = 1000
"""Maximum length of a name and of a key path, in characters."""

_MAX_NUMBER_LENGTH = 100
_DIRECTIVE = re.compile(r"^%([A-Z]+)", re.MULTILINE)
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_REMEDIES = (
    ("escape", "put text with backslashes into single quotes"),
    ("found unexpected ':'", "is a space missing after a colon?"),
    ("mapping values", "is a space missing after a colon, or a line indented wrongly?"),
    ("block", "is this line indented like its neighbours?"),
)
"""Remedies, by words in the parser's error message."""
_MISSING_SPACE = re.compile(r"(- )?[A-Za-z_]+:[^\s/\\\\].*")
"""A key and value without a space after the colon; not a drive letter or URL."""
_ASSIGNMENT = re.compile(r"\s*[A-Za-z_]+ *= *[\"'\[{]")
_ODD_SPACE = re.compile("([\u00a0\u2000-\u200b\u202f\u3000\ufeff])")
_ODD_DASH = re.compile("^\\s*([\u2010-\u2015\u2212\u2022*])\\s+\\w")
_OCTAL = re.compile(r"[+-]?0[0-7]*[1-9][0-7]*")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG_PREFIX}{kind}" for kind in ("str", "int", "float", "bool", "null")}
_MERGE_TAG = f"{_TAG_PREFIX}merge"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a document, and its place.

    ``content`` is a scalar, a list of values, or a mapping of strings to values. ``is_repeated`` if
    aliases repeat it, or a part of it, elsewhere.
    """

    content: Any
    place: Place
    is_repeated: bool = False

    def error(self, cause: str, remedy: str = "", code: str = "") -> ConfigError:
        """An error at the place of this value."""
        return self.place.error(cause, remedy, code)

    def mapping(self, what: str) -> Mapping[str, Value]:
        """The content as a mapping.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, dict):
            models = what == "a configuration" and isinstance(self.content, list)
            remedy = "put 'merge_method: ...' and 'models:' above the list" if models else ""
            raise self.error(f"{what} must be a mapping, not {self.kind}", remedy)
        return self.content

    def items(self, what: str) -> list[Value]:
        """The content as a list.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, list):
            remedy = "begin each entry with '- '" if isinstance(self.content, dict) else ""
            raise self.error(f"{what} must be a list, not {self.kind}", remedy)
        return self.content

    def text(self, what: str) -> str:
        """The content as a name: a non-empty string of printable characters.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, str) or not is_name(self.content):
            number = isinstance(self.content, (int, float)) and self.content is not True
            remedy = f"write it in quotes, '{self.content}'" if number else ""
            raise self.error(f"{what} must be a name, not {self.kind}", remedy)
        return self.content

    def integer(self, what: str) -> int:
        """The content as an integer, which may be written as ``4.0`` or as text.

        Raises:
            ConfigError: it is something else.
        """
        content = self.content
        if isinstance(content, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", content.strip()):
            return int(content)
        if isinstance(content, float) and content.is_integer():
            return int(content)
        if type(content) is not int:
            raise self.error(f"{what} must be a whole number, not {self.kind}")
        return content

    def positive(self, what: str) -> int:
        """The content as an integer of at least 1.

        Raises:
            ConfigError: it is something else.
        """
        number = self.integer(what)
        if number < 1:
            raise self.error(f"{what} must be 1 or more, not {number}")
        return number

    def boolean(self, what: str) -> bool:
        """The content as a boolean.

        Raises:
            ConfigError: it is something else.
        """
        if not isinstance(self.content, bool):
            raise self.error(f"{what} must be true or false, not {self.kind}")
        return self.content

    def without_places(self) -> Any:
        """The content as plain Python data."""
        if isinstance(self.content, dict):
            return {key: value.without_places() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.without_places() for value in self.content]
        return self.content

    @property
    def has_value(self) -> bool:
        """Whether there is a value: neither null nor an empty string, list or mapping."""
        return self.content is not None and self.content not in ("", [], {})

    @property
    def kind(self) -> str:
        """The content in words, for messages."""
        if isinstance(self.content, dict):
            return "a mapping"
        if isinstance(self.content, list):
            return "a list"
        if isinstance(self.content, bool):
            return "true" if self.content else "false"
        return "nothing" if self.content is None else shortened(repr(self.content))


def load_documents(text: str, file: str, findings: Findings, lines: bool = True) -> list[Value]:
    """All non-empty documents of a YAML or JSON text. Places have line numbers if ``lines``.

    Raises:
        ConfigError: it is not YAML, or too large.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"'{file}' has {len(text)} characters: too large for a configuration")
    for directive in _DIRECTIVE.finditer(text):
        if directive[1] != "YAML":
            line = text.count("\n", 0, directive.start()) + 1
            raise ConfigError(
                "YAML directives are not allowed", place=Place(file, line), remedy="remove the line"
            )
    if text.lstrip().startswith("{"):  # JSON escapes characters above U+FFFF as surrogate pairs
        text = _SURROGATES.sub(_as_one_escape, text)
    try:
        _check_nesting(text, file)
        nodes = list(yaml.compose_all(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from error
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise ConfigError(
            f"a control character (#x{error.character:02x})",
            place=Place(file, line),
            remedy="remove it",
            code="syntax",
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from error
    reader = _Reader(file, findings, lines, _repeated(nodes))
    values = [reader.value(node, "", 0) for node in nodes]
    return [value for value in values if value.content is not None]


def _repeated(nodes: Sequence[Node]) -> frozenset[int]:
    """The `id` of nodes that are in more than one place: those that aliases repeat."""
    met: set[int] = set()
    repeated: set[int] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) in met:
            repeated.add(id(node))
            continue
        met.add(id(node))
        if isinstance(node, MappingNode):
            waiting.extend(value for _, value in node.value)
        elif isinstance(node, SequenceNode):
            waiting.extend(node.value)
    return frozenset(repeated)


def is_name(text: str) -> bool:
    """Whether ``text`` can be shown unchanged in a message, a terminal and a file name."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def shortened(text: str) -> str:
    """``text``, truncated to 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_one_escape(pair: re.Match[str]) -> str:
    high, low = int(pair[1], 16), int(pair[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + low - 0xDC00:08X}"


def _syntax_error(error: yaml.MarkedYAMLError, text: str, file: str) -> ConfigError:
    """The error for text that cannot be parsed; common causes are named in plain words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark is not None else 0
    lines = [*text.splitlines(), *[""] * (line + 1)]
    written = lines[line]
    place = Place(file, line + 1)
    here = written[mark.column : mark.column + 1] if mark is not None else ""
    above = next((n for n in range(line - 1, -1, -1) if lines[n].strip()), None)
    before = lines[above].strip() if above is not None else ""
    opened = error.context_mark.line + 1 if error.context_mark is not None else 0
    near = [(n, lines[n].partition("#")[0]) for n in (line, above) if n is not None]
    if "\t" in (here or written[: len(written) - len(written.lstrip())]):
        cause, remedy = "a tab", "YAML is indented with spaces"
    elif "undefined alias" in str(error.problem) and mark is not None:
        alias = re.split(r"[\s,\]}]", written[mark.column + 1 :], maxsplit=1)[0]
        cause = f"the alias '*{alias}' is not defined"
        remedy = f"write '&{alias}' before the value it stands for, in a line above"
    elif odd := _first(_ODD_SPACE, near):
        place = Place(file, odd[0] + 1)
        cause, remedy = f"a space of another kind (U+{ord(odd[1]):04X})", "write an ordinary space"
    elif odd := _first(_ODD_DASH, near):
        place = Place(file, odd[0] + 1)
        cause, remedy = f"'{odd[1]}' (U+{ord(odd[1]):04X}) before an item", "write '-'"
    elif written.startswith("```"):
        cause, remedy = "a Markdown code fence", "remove the lines with ```"
    elif above is not None and _MISSING_SPACE.fullmatch(before):
        place = Place(file, above + 1)
        cause = f"{shortened(repr(before))} has no space after its colon"
        remedy = f"write {shortened(repr(before.replace(':', ': ', 1)))}"
    elif _ASSIGNMENT.match(text):
        place = Place(file, text.count("\n", 0, len(text) - len(text.lstrip())) + 1)
        cause = "a line of Python, not YAML"
        remedy = "keep only the lines between the quotes"
    elif opened and "',' or" in str(error.problem):
        sign = f"{error.problem}"[-2]
        pair = {"]": "[", "}": "{"}.get(sign, "[")
        cause = f"the '{pair}' of line {opened} is not closed"
        remedy = f"is a comma or '{sign}' missing before this?"
    else:
        kind = "JSON" if file.lower().endswith(".json") else "YAML"
        cause = f"not valid {kind}: {error.problem}"
        remedy = next(
            (r for words, r in _REMEDIES if words in f"{error.problem} {error.context}"), ""
        )
    return ConfigError(cause, place=place, remedy=remedy, code="syntax")


def _first(pattern: re.Pattern[str], lines: Iterable[tuple[int, str]]) -> tuple[int, str] | None:
    """The number of the first line in which a pattern is found, and the character it has."""
    found = ((number, pattern.search(line)) for number, line in lines)
    return next(((number, each[1]) for number, each in found if each is not None), None)


def _check_nesting(text: str, file: str) -> None:
    """Check depth and size before composing, because PyYAML's composer recurses in C without a
    limit."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:  # a collection has a start and an end event
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise _too_large_error(Place(file, line))


def _too_large_error(place: Place) -> ConfigError:
    return ConfigError("the document is too large or too deep for a configuration", place=place)


class _Reader:
    def __init__(
        self, file: str, findings: Findings, lines: bool, repeated: frozenset[int]
    ) -> None:
        self._file = file
        self._repeated = repeated
        self._lines = lines
        self._findings = findings
        self._count = 0
        self._scalars = _LOADER("")

    def value(self, node: Node, path: str, depth: int) -> Value:
        place = self._place(node, path)
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH or len(path) > MAX_NAME:
            raise _too_large_error(Place(self._file, place.line, path[:80]))
        repeated = id(node) in self._repeated
        if isinstance(node, MappingNode):
            content = self._mapping(node, path, depth)
            inner = any(value.is_repeated for value in content.values())
            return Value(content, place, repeated or inner)
        if isinstance(node, SequenceNode):
            children = enumerate(node.value)
            items = [self.value(child, f"{path}[{i}]", depth + 1) for i, child in children]
            return Value(items, place, repeated or any(item.is_repeated for item in items))
        assert isinstance(node, ScalarNode)
        return Value(self._scalar(node, place), place, repeated)

    def _place(self, node: Node, path: str) -> Place:
        return Place(self._file, node.start_mark.line + 1 if self._lines else 0, path)

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Value]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node, path)
            if key_node.tag == _MERGE_TAG:
                for name, value in self._merge_key_content(value_node, path, depth).items():
                    merged.setdefault(name, value)
                continue
            key = self._scalar(key_node, place) if isinstance(key_node, ScalarNode) else None
            name = str(key)
            if key is None or isinstance(key, bool) or len(name) > MAX_NAME:
                self._findings.error(place, f"a key must be a name, not {shortened(repr(key))}")
                continue
            shown = name if is_name(name) else repr(name)
            below = f"{path}.{shown}".lstrip(".")
            if name in own:
                self._findings.warn(
                    Place(self._file, place.line, below),
                    f"{shortened(repr(name))} is already set in line "
                    f"{own[name].place.line}; the later value is used",
                    "remove one of them",
                    "repeated-key",
                )
            own[name] = self.value(value_node, below, depth + 1)
        return {**merged, **own}

    def _merge_key_content(self, node: Node, path: str, depth: int) -> Mapping[str, Value]:
        """The content of a merge key (``<<``): one mapping, or several, where the first wins."""
        nodes: Sequence[Node] = node.value if isinstance(node, SequenceNode) else [node]
        found: dict[str, Value] = {}
        for each in nodes:
            if not isinstance(each, MappingNode):
                place = self._place(node, path)
                self._findings.error(place, "'<<' takes a mapping, or a list of mappings")
                continue
            mapping: dict[str, Value] = self.value(each, path, depth + 1).content
            found = {**mapping, **found}
        return found

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        if node.tag not in _PLAIN_TAGS:
            if node.tag.startswith(_TAG_PREFIX) and not node.tag.endswith("binary"):
                return node.value  # dates and the like are read as text
            tag = shortened(repr(node.tag))
            self._findings.error(place, f"the tag {tag} is not allowed", "write plain values")
            return None
        if not node.tag.endswith(":str"):
            if len(node.value) > _MAX_NUMBER_LENGTH:
                self._findings.error(place, f"not a value: {shortened(repr(node.value))}")
                return None
            if ":" in node.value:  # YAML 1.1 reads 1:30 as base 60, which is never meant
                return node.value
            if _OCTAL.fullmatch(node.value) and int(node.value, 8) != int(node.value):
                self._findings.warn(
                    place,
                    f"'{node.value}' is an octal number in YAML, {int(node.value, 8)}",
                    "remove the leading zero for a decimal number",
                )
        try:
            return self._scalars.construct_object(node)
        except (ValueError, yaml.YAMLError):
            self._findings.error(place, f"not a value: {shortened(repr(node.value))}")
            return None
