"""References to models: ``path-or-id[@revision][+adapter[@revision]]``, or a mapping."""

from __future__ import annotations

from collections.abc import Iterator

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import LOCATION, REFERENCE, Fields
from mergeloom.planners.config.yaml_values import Value


@dataclass(frozen=True, slots=True)
class Location:
    """A local path or a hub id, with an optional revision."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, optionally with an adapter that is merged into it first."""

    model: Location
    adapter: Location | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)


def parse_reference(text: str) -> ModelReference:
    """Parse a reference.

    Raises:
        ConfigError: part of it is empty.
    """
    model, plus, adapter = text.partition("+")
    return ModelReference(_location(model, text), _location(adapter, text) if plus else None)


def interpretations(reference: ModelReference) -> Iterator[ModelReference]:
    """All that a reference may mean, because directory names may contain ``+`` or ``@``: the one
    with the longest directory name first, the reference itself last."""
    text = str(reference)
    for end in range(len(text), 0, -1):
        if end < len(text) and text[end] not in "+@":
            continue
        path, rest = text[:end], text[end:]
        if "+" not in path and "@" not in path:
            break
        try:
            tail = parse_reference("x" + rest)
        except ConfigError:
            continue
        location = Location(path, tail.model.revision)
        yield ModelReference(location, tail.adapter, reference.override_architecture)
    yield reference


def read_reference(value: Value, findings: Findings) -> ModelReference:
    """Read a reference from a configuration, a string or a mapping.

    Raises:
        ConfigError: it is neither, or malformed.
    """
    if not isinstance(value.content, dict):
        try:
            return parse_reference(value.text("a model"))
        except ConfigError as error:
            raise error.at(value.place) from error
    if "path" in value.content and "model" not in value.content:
        return ModelReference(_read_location(value, findings))
    fields = Fields(value, REFERENCE, findings)
    override = fields.read("override_architecture", lambda each: each.text("a class"))
    if override is not None:
        findings.warn(
            fields["override_architecture"].place,
            "'override_architecture' has no effect: the architecture is inferred from the tensors",
            code="no-effect",
        )
    lora = fields.read("lora", lambda each: _read_location(each, findings))
    return ModelReference(_read_location(fields.require("model"), findings), lora, override)


def _read_location(value: Value, findings: Findings) -> Location:
    if not isinstance(value.content, dict):
        text = value.text("a model")
        try:
            return _location(text, text)
        except ConfigError as error:
            raise error.at(value.place) from error
    fields = Fields(value, LOCATION, findings)
    revision = fields.read("revision", _revision)
    return Location(fields.require("path").text("'path'"), revision)


def _revision(value: Value) -> str:
    number = type(value.content) is int  # a commit hash may consist of digits only
    return str(value.content) if number else value.text("'revision'")


def _location(part: str, whole: str) -> Location:
    path, at, revision = part.strip().partition("@")
    if not path or (at and not revision):
        raise ConfigError(
            f"'{whole}' is not a model reference", remedy="write model[@revision][+adapter]"
        )
    return Location(path, revision or None)
