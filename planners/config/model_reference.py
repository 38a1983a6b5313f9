"""References to models: ``path-or-id[@revision][+adapter[@revision]]``, or a mapping."""

from __future__ import annotations

from dataclasses import dataclass

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.yaml_values import Value, nearest


@dataclass(frozen=True, slots=True)
class Location:
    """A local path or a hub id, and a revision of it."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, possibly with an adapter to be merged into it first."""

    model: Location
    adapter: Location | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)


def parse_reference(text: str) -> ModelReference:
    """The reference that ``text`` stands for.

    Raises:
        ConfigError: a part of it is empty.
    """
    model, plus, adapter = text.partition("+")
    return ModelReference(_location(model, text), _location(adapter, text) if plus else None)


def read_reference(value: Value) -> ModelReference:
    """The reference in a configuration, written as a string or as a mapping.

    Raises:
        ConfigError: it is neither, or malformed.
    """
    if not isinstance(value.content, dict):
        try:
            return parse_reference(value.text("a model"))
        except ConfigError as error:
            raise value.error(str(error)) from error
    keys = value.mapping("a model")
    for key, item in keys.items():
        if key not in {"model", "lora", "override_architecture"}:
            known = nearest(key, ["model", "lora", "override_architecture"])
            raise item.error(f"unknown key {key!r}{known}")
    if "model" not in keys:
        raise value.error("a model reference needs 'model'")
    override = keys.get("override_architecture")
    lora = keys.get("lora")
    return ModelReference(
        _read_location(keys["model"]),
        _read_location(lora) if lora is not None and lora.content is not None else None,
        override.text("'override_architecture'") if override and override.content else None,
    )


def _read_location(value: Value) -> Location:
    if not isinstance(value.content, dict):
        text = value.text("a model")
        try:
            return _location(text, text)
        except ConfigError as error:
            raise value.error(str(error)) from error
    keys = value.mapping("a model")
    for key, item in keys.items():
        if key not in {"path", "revision"}:
            raise item.error(f"unknown key {key!r}{nearest(key, ['path', 'revision'])}")
    if "path" not in keys:
        raise value.error("a model reference needs 'path'")
    revision = keys.get("revision")
    if revision is None or revision.content is None:
        return Location(keys["path"].text("'path'"))
    number = type(revision.content) is int  # a hash may have digits only
    return Location(
        keys["path"].text("'path'"),
        str(revision.content) if number else revision.text("'revision'"),
    )


def _location(part: str, whole: str) -> Location:
    path, at, revision = part.strip().partition("@")
    if not path or (at and not revision):
        raise ConfigError(f"'{whole}' is no model reference: write model[@revision][+adapter]")
    return Location(path, revision or None)
