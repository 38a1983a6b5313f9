"""A configuration's text, from a file, standard input or Python data, to records."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import ConfigError, Finding, Place
from mergeloom.engine.base.suggest import nearest
from mergeloom.planners.config.config import Configuration, Document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.plain_data import yaml_text
from mergeloom.planners.config.settings import Setting, apply_settings, check_settings, text_with
from mergeloom.planners.config.yaml_values import MAX_BYTES, load_documents
from mergeloom.planners.registry import planner_for

STANDARD_INPUT = Path("-")

_SUFFIXES = frozenset({".yml", ".yaml", ".json"})
_CARD = re.compile(r"^(license|library_name|language|tags|pipeline_tag|datasets)\s*:", re.MULTILINE)
_MERGE = re.compile(r"^(merge_method|models|slices|modules|adapters|tensors)\s*:", re.MULTILINE)
"""Keys of the front matter of model cards, and keys of which every configuration has one."""


def load_config(path: Path, settings: Sequence[Setting] = ()) -> Configuration:
    """Read a configuration file; ``-`` is standard input. ``settings`` take the place of what it
    says.

    Raises:
        ConfigError: it cannot be read, or means nothing; the message names file, line and key of
            everything that is wrong.
    """
    stream = path == STANDARD_INPUT
    name = "standard input" if stream else f"'{path}'"
    try:
        if stream:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except IsADirectoryError as error:
        raise ConfigError(
            f"cannot read the configuration {name}: it is a directory",
            remedy="give the configuration's file",
        ) from error
    except FileNotFoundError as error:
        near = _near(path)
        raise ConfigError(
            f"cannot read the configuration {name}: there is no such file",
            remedy=f"did you mean '{near}'?" if near else "",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot read the configuration {name}: {reason}") from error
    if _is_card(text):
        raise ConfigError(
            f"{name} is a model card, not a configuration",
            remedy="write the configuration that it shows into a file of its own",
        )
    if stream:
        return parse_config(text, "stdin", settings=settings)
    return parse_config(text, path.name, path, settings=settings)


def _is_card(text: str) -> bool:
    """Whether a text is a model card: Markdown after YAML that describes no merge."""
    begin, _, rest = text.partition("\n")
    front, end, _ = rest.partition("\n---")
    return bool(begin.strip() == "---" and end and _CARD.search(front) and not _MERGE.search(front))


def _near(path: Path) -> str | None:
    """A configuration beside ``path`` whose name is like its name."""
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
) -> Configuration:
    """The configuration that ``text`` stands for, with ``settings`` in their places; ``file`` is
    how messages call it, with ``lines`` or, where nobody has seen the text, without.

    Raises:
        ConfigError: it means nothing; the message names file, line and key of everything that is
            wrong.
    """
    findings = Findings()
    values = load_documents(text, file, findings, lines)
    if not values:
        findings.check()
        raise ConfigError(
            "the configuration is empty",
            place=Place(file),
            remedy="'mergeloom init MODEL MODEL' writes one to start from",
        )
    if settings:
        values = apply_settings(values, settings, findings)
        text = text_with(values, settings, file)
    documents = [
        findings.attempt(lambda value: planner_for(value).read(value, findings), value)
        for value in values
    ]
    complete = [document for document in documents if document is not None]
    ordered = complete
    if len(complete) == len(values):
        ordered = _in_order(complete, findings)
    warnings = findings.check()
    check_settings(warnings)
    return Configuration(tuple(ordered), text, path, warnings)


def config_from(data: Mapping[Any, Any], settings: Sequence[Setting] = ()) -> Configuration:
    """The configuration that Python data stands for, as a YAML file would, with ``settings``.

    Raises:
        ConfigError: it means nothing; the message names the key of everything that is wrong.
    """
    return parse_config(yaml_text(data, "config"), "config", lines=False, settings=settings)


def _in_order(documents: Sequence[Document], findings: Findings) -> list[Document]:
    """The stages, each after those that it uses, and the output last: the one without a name, or
    else the last that no other uses."""
    named: dict[str, int] = {}
    for number, document in enumerate(documents):
        if document.name in named:
            findings.error(document.place, f"two stages are named '{document.name}'")
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
        parts = [named[name] for each in document.mentioned() if (name := str(each)) in named]
        sorter.add(number, *parts)
        used.update(parts)
    try:
        ordered = list(sorter.static_order())
    except CycleError as error:
        findings.add(_cycle([documents[number] for number in error.args[1]]))
        return []
    output = unnamed[-1] if unnamed else max(set(ordered) - used)
    return [documents[number] for number in (*(n for n in ordered if n != output), output)]


def _cycle(stages: Sequence[Document]) -> Finding:
    """The finding for stages each of which is used by the next, and the first is the last."""
    used, user = stages[-2:]
    place = next(user.place_of(each) for each in user.mentioned() if str(each) == used.name)
    names = dict.fromkeys(f"'{stage.name}'" for stage in stages)
    what = " and ".join(names) + (" uses itself" if len(names) == 1 else " use each other")
    return Finding(
        f"a cycle: stage{'s' * (len(names) > 1)} {what}",
        place,
        "a model that has the name of a stage needs another name for the stage",
        "cycle",
    )
