"""Loads a configuration from a file, from standard input or from Python data."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import ConfigError, Finding, Place
from mergeloom.engine.base.suggest import nearest
from mergeloom.planners.config.config import Configuration, Document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.plain_data import yaml_text
from mergeloom.planners.config.settings import (
    Setting,
    apply_settings,
    check_settings,
    text_with_settings,
)
from mergeloom.planners.config.yaml_values import MAX_BYTES, load_documents
from mergeloom.planners.registry import planner_for

STANDARD_INPUT = Path("-")

LookFurther = Callable[[Sequence[Document], Path | None, Findings], None]
"""Called if a configuration has errors, with its documents as far as they could be read and the
path of its file; adds other errors, so that all are reported at once."""

_SUFFIXES = frozenset({".yml", ".yaml", ".json"})
_CARD_KEY = re.compile(
    r"^(license|library_name|language|tags|pipeline_tag|datasets)\s*:", re.MULTILINE
)
_CONFIGURATION_KEY = re.compile(
    r"^(merge_method|models|slices|modules|adapters|tensors)\s*:", re.MULTILINE
)
"""Keys of a model card's front matter, and keys that identify a configuration."""


def load_config(
    path: Path, settings: Sequence[Setting] = (), look_further: LookFurther | None = None
) -> Configuration:
    """Read a configuration file (``-`` for standard input) and apply ``settings`` to it. For
    ``look_further`` see `LookFurther`.

    Raises:
        ConfigError: it cannot be read or is invalid; the message has file, line and key of every
        error.
    """
    stream = path == STANDARD_INPUT
    name = "standard input" if stream else f"'{path}'"
    try:
        if stream:
            if sys.stdin is None:
                raise ConfigError(f"cannot read the configuration {name}: it is closed")
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        if b"\0" in content[:4096] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError(
                f"{name} is not a text file, and a configuration is YAML",
                remedy="'mergeloom inspect DIR' shows the model in a directory",
            )
        text = content.decode("utf-8-sig")
    except IsADirectoryError as error:
        raise ConfigError(
            f"cannot read the configuration {name}: it is a directory",
            remedy="give the configuration file",
        ) from error
    except FileNotFoundError as error:
        near = _similar_file(path)
        raise ConfigError(
            f"cannot read the configuration {name}: no such file",
            remedy=f"did you mean '{near}'?" if near else "",
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"not UTF-8 text: byte {content[error.start]:#x}",
            place=Place("stdin" if stream else path.name, line),
            remedy="save it as UTF-8",
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {name}: {error.strerror}") from error
    if _is_model_card(text):
        raise ConfigError(
            f"{name} is a model card, not a configuration",
            remedy="copy the configuration it contains into a separate file",
        )
    if stream:
        return parse_config(text, "stdin", settings=settings, look_further=look_further)
    return parse_config(text, path.name, path, settings=settings, look_further=look_further)


def _is_model_card(text: str) -> bool:
    """Whether a text is a model card: Markdown after YAML front matter that is not a merge."""
    begin, _, rest = text.partition("\n")
    front, end, _ = rest.partition("\n---")
    return bool(
        begin.strip() == "---"
        and end
        and _CARD_KEY.search(front)
        and not _CONFIGURATION_KEY.search(front)
    )


def _similar_file(path: Path) -> str | None:
    """A configuration in the same directory with a name similar to that of ``path``."""
    try:
        files = [each for each in path.parent.iterdir() if each.suffix in _SUFFIXES]
    except OSError:
        return None
    found = nearest(path.stem, [each.stem for each in files])
    return next((str(each) for each in files if each.stem == found), None)


def parse_config(
    text: str,
    file: str = "config",
    path: Path | None = None,
    lines: bool = True,
    settings: Sequence[Setting] = (),
    look_further: LookFurther | None = None,
) -> Configuration:
    """Parse ``text`` and apply ``settings``. Messages call the text ``file``, and include line
    numbers unless ``lines`` is false because the user has not seen the text. For ``look_further``
    see `LookFurther`.

    Raises:
        ConfigError: it is invalid; the message has file, line and key of every error.
    """
    findings = Findings()
    values = load_documents(text, file, findings, lines)
    if not values:
        findings.check()
        raise ConfigError(
            "the configuration is empty",
            place=Place(file),
            remedy="'mergeloom init MODEL MODEL' writes one",
        )
    if settings:
        values = apply_settings(values, settings, findings)
        text = text_with_settings(values, settings, file)
    documents = [
        findings.attempt(lambda value: planner_for(value).read(value, findings), value)
        for value in values
    ]
    complete = [document for document in documents if document is not None]
    ordered = complete
    if len(complete) == len(values):
        ordered = _in_dependency_order(complete, findings)
    if findings.errors and look_further is not None:
        look_further(complete, path, findings)
    warnings = findings.check()
    check_settings(warnings)
    return Configuration(tuple(ordered), text, path, warnings)


def config_from_data(
    data: Mapping[Any, Any],
    settings: Sequence[Setting] = (),
    look_further: LookFurther | None = None,
) -> Configuration:
    """Build a configuration from Python data, as from the same YAML, and apply ``settings``. For
    ``look_further`` see `LookFurther`.

    Raises:
        ConfigError: it is invalid; the message has the key of every error.
    """
    text = yaml_text(data, "config")
    return parse_config(text, "config", None, False, settings, look_further)


def _in_dependency_order(documents: Sequence[Document], findings: Findings) -> list[Document]:
    """The stages, each after those it uses, and the output last. The output is the stage without a
    name or, if all have one, the last stage that no other uses."""
    named: dict[str, int] = {}
    for number, document in enumerate(documents):
        if document.name in named:
            findings.error(
                document.place, f"two stages are named '{document.name}'", "rename one of them"
            )
        elif document.name is not None:
            named[document.name] = number
    unnamed = [number for number, document in enumerate(documents) if document.name is None]
    for number in unnamed[:-1]:
        findings.error(
            documents[number].place,
            "two stages have no 'name', and only one can be the output",
            "name this one and use it as a model in the other, or give it a file of its own",
        )
    sorter: TopologicalSorter[int] = TopologicalSorter()
    used: set[int] = set()
    for number, document in enumerate(documents):
        parts = [named[name] for each in document.named_models() if (name := str(each)) in named]
        sorter.add(number, *parts)
        used.update(parts)
    try:
        ordered = list(sorter.static_order())
    except CycleError as error:
        findings.add(_cycle_finding([documents[number] for number in error.args[1]]))
        return []
    output = unnamed[-1] if unnamed else max(set(ordered) - used)
    return [documents[number] for number in (*(n for n in ordered if n != output), output)]


def _cycle_finding(stages: Sequence[Document]) -> Finding:
    """The finding for a cycle: each stage is used by the next; first and last are the same."""
    used, user = stages[-2:]
    place = next(user.place_of(each) for each in user.named_models() if str(each) == used.name)
    names = dict.fromkeys(f"'{stage.name}'" for stage in stages)
    what = " and ".join(names) + (" uses itself" if len(names) == 1 else " use each other")
    return Finding(
        f"a cycle: stage{'s' * (len(names) > 1)} {what}",
        place,
        "if a model has the same name as a stage, rename the stage",
        "cycle",
    )
