"""Values that override the configuration: ``--set parameters.t=0.3``.

A *setting* is a path of keys and a YAML value. The value replaces that at the path; an empty value
removes it. Errors in the value name the setting as their place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from mergeloom.engine.base.errors import ConfigError, Finding, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.findings import Findings, refuse_unknown
from mergeloom.planners.config.plain_data import yaml_text
from mergeloom.planners.config.yaml_values import Value, load_documents, shortened

_PATH_STEP = re.compile(r'(?:^|\.)(?:"((?:[^"\\]|\\.)*)"|([^."\[\]=]+))|\[(\d{1,6})\]')
_OPTION = "--set "

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A path of keys (strings) and list positions (integers), and the YAML value to put there."""

    path: Path
    value: str

    @property
    def path_text(self) -> str:
        """The path as text: ``models[0].parameters.weight``."""
        return _path_text(self.path)

    @property
    def place(self) -> str:
        """The place that messages about it name."""
        return shortened(f"{_OPTION}{self.path_text}={self.value}")


def parse_setting(text: str) -> Setting:
    """Parse ``PATH=VALUE``. Keys that contain a dot are quoted.

    Raises:
        ConfigError: it has another form.
    """
    path: list[str | int] = []
    end = 0
    while end < len(text) and text[end] != "=":
        step = _PATH_STEP.match(text, end)
        if step is None:
            break
        quoted, key, number = step.groups()
        if number is not None:
            path.append(int(number))
        else:
            path.append(key.strip() if key is not None else re.sub(r"\\(.)", r"\1", quoted))
        end = step.end()
    if not path or text[end : end + 1] != "=":
        raise ConfigError(
            "a setting is a path of keys, '=' and a value",
            place=Place(shortened(f"{_OPTION}{ascii(text)[1:-1]}")),
            remedy="write --set parameters.t=0.3, or --set 'models[0].parameters.weight=0.5'",
            code="setting",
        )
    return Setting(tuple(path), text[end + 1 :])


def setting_from_value(path: str, value: Any) -> Setting:
    """A setting with a Python value; ``None`` removes the value at the path.

    Raises:
        ConfigError: the path is malformed, or a configuration cannot have such a value.
    """
    found = parse_setting(f"{path}=")
    if value is None:
        return found
    text = yaml_text({"value": value}, f"{_OPTION}{path}")
    shown = yaml.safe_dump(yaml.safe_load(text)["value"], default_flow_style=True, width=4000)
    return replace(found, value=shown.strip().removesuffix("...").strip())


def apply_settings(
    documents: Sequence[Value], settings: Sequence[Setting], findings: Findings
) -> list[Value]:
    """The documents with every setting applied.

    With several documents, a path begins with the document's number: ``[1].parameters.t``.

    Raises:
        ConfigError: a path does not exist, or a value is not YAML.
    """
    found = list(documents)
    for setting in settings:
        first = setting.path[0]
        if isinstance(first, int):
            if first >= len(found):
                raise _setting_error(
                    setting, f"there is no document [{first}]", _positions_text(found)
                )
            number, path = first, setting.path[1:]
        elif len(found) > 1:
            raise _setting_error(
                setting,
                f"the configuration has {len(found)} documents",
                f"write [0].{setting.path_text} for the first, [{len(found) - 1}]. for the last",
            )
        else:
            number, path = 0, setting.path
        if not path:
            raise _setting_error(setting, "a whole document cannot be set", "name a key in it")
        found[number] = _replaced(found[number], path, setting, _parsed_value(setting, findings))
    return found


def text_with_settings(documents: Sequence[Value], settings: Sequence[Setting], name: str) -> str:
    """The YAML of documents with settings applied; a comment at the top lists the settings."""
    comments = "".join(f"# {each.place}\n" for each in settings)
    texts = (
        yaml.safe_dump(each.without_places(), sort_keys=False, allow_unicode=True, width=4000)
        for each in documents
    )
    return f"# {name} with\n{comments}" + "---\n".join(texts)


def check_settings(warnings: Sequence[Finding]) -> None:
    """Check that every key and parameter that was set exists and has an effect.

    Raises:
        ConfigError: some are unknown, or have no effect at their path.
    """
    refuse_unknown(
        each for each in warnings if each.place is not None and each.place.file.startswith(_OPTION)
    )


def _parsed_value(setting: Setting, findings: Findings) -> Value | None:
    """The value of a setting; ``None`` to remove the value at the path."""
    if not setting.value.strip():
        return None
    try:
        values = load_documents(setting.value, setting.place, findings, lines=False)
    except ConfigError as error:
        raise _setting_error(setting, f"its value: {error.cause}", error.remedy) from error
    if len(values) > 1:
        raise _setting_error(setting, "it has several values")
    return values[0] if values else None


def _replaced(value: Value | None, path: Path, setting: Setting, new: Value | None) -> Value:
    """``value`` with ``new`` at the relative ``path``."""
    if not path:
        return new if new is not None else Value(None, Place(setting.place))
    step = path[0]
    if isinstance(step, str) and step.isdecimal() and isinstance(_content_of(value), list):
        step = int(step)
    if isinstance(step, int):
        return _with_replaced_entry(value, step, path[1:], setting, new)
    return _with_replaced_key(value, step, path[1:], setting, new)


def _with_replaced_entry(
    value: Value | None, step: int, rest: Path, setting: Setting, new: Value | None
) -> Value:
    """A list whose entry ``step`` has ``new`` at the path ``rest``."""
    where = _path_before(setting, rest)
    items = _content_of(value)
    if value is None or not isinstance(items, list):
        raise _setting_error(setting, f"{where} is {_kind_text(value)}, not a list")
    if step >= len(items):
        raise _setting_error(setting, f"{where} has no entry [{step}]", _positions_text(items))
    if new is None and not rest:
        return Value([*items[:step], *items[step + 1 :]], value.place)
    items = list(items)
    items[step] = _replaced(items[step], rest, setting, new)
    return Value(items, value.place)


def _with_replaced_key(
    value: Value | None, step: str, rest: Path, setting: Setting, new: Value | None
) -> Value:
    """A mapping whose key ``step`` has ``new`` at the path ``rest``."""
    above = setting.path[: len(setting.path) - len(rest) - 1]
    where = _path_before(setting, rest)
    if value is None or value.content is None:
        value = Value({}, Place(setting.place))
    if isinstance(value.content, str) and above[-2:-1] in (("models",), ("sources",)):
        value = Value({"model": value}, value.place)  # a bare name
    if isinstance(value.content, list):
        last = f", [0] to [{len(value.content) - 1}]" if len(value.content) > 1 else ""
        raise _setting_error(
            setting,
            f"{where} is a list of {len(value.content)}",
            f"write {_path_text((*above, 0, step, *rest))}{last}",
        )
    if not isinstance(value.content, dict):
        raise _setting_error(setting, f"{where} is {_kind_text(value)}, which has no keys")
    content = dict(value.content)
    if new is None and not rest:
        if step not in content:
            raise _setting_error(
                setting, f"there is no '{step}' to remove", suggest(step, list(content))
            )
        del content[step]
    else:
        content[step] = _replaced(content.get(step), rest, setting, new)
    return Value(content, value.place)


def _content_of(value: Value | None) -> Any:
    return None if value is None else value.content


def _path_before(setting: Setting, rest: Path) -> str:
    """The path up to ``rest``, for messages."""
    above = setting.path[: len(setting.path) - len(rest) - 1]
    return f"'{_path_text(above)}'" if above else "the configuration"


def _setting_error(setting: Setting, cause: str, remedy: str = "") -> ConfigError:
    return ConfigError(cause, place=Place(setting.place), remedy=remedy, code="setting")


def _kind_text(value: Value | None) -> str:
    return "not there" if value is None else value.kind


def _positions_text(items: Sequence[Any] | Mapping[str, Any]) -> str:
    return f"there are [0] to [{len(items) - 1}]" if len(items) > 1 else "there is [0] only"


def _path_text(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if re.fullmatch(r'[^."\[\]=\s]+', step) else f'"{step}"'
            text += f".{shown}" if text else shown
    return text
