"""The configuration: mergekit's YAML format as immutable records, each with its place.

`load_config` checks everything that can be checked without looking at a model or a method:
keys, kinds of values, combinations. See ``docs/configuration.md`` for the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F16, F32, F64, DType
from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.model_reference import ModelReference, read_reference
from mergeloom.planners.config.parameters import Parameters, read_parameters
from mergeloom.planners.config.yaml_values import MAX_BYTES, Place, Value, load_documents, nearest

_DTYPES = {
    "bf16": BF16,
    "fp16": F16,
    "f16": F16,
    "half": F16,
    "float": F32,
    "fp32": F32,
    "f32": F32,
}
_DTYPES |= {dtype.name: dtype for dtype in (BF16, F16, F32, F64)}

_DOCUMENT_KEYS = {
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "name",
}
_IGNORED_KEYS = {"license", "description", "author", "tags"}


@dataclass(frozen=True, slots=True)
class Source:
    """One model among those that make a slice; ``layer_range`` is ``None`` for all its layers."""

    model: ModelReference
    layer_range: tuple[int, int] | None
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """Sources that are merged with each other, layer by layer."""

    sources: tuple[Source, ...]
    base_model: ModelReference | None
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True)
class Module:
    """The slices of one tower; ``whole`` if they were written as ``models``."""

    slices: tuple[OutputSlice, ...]
    whole: bool
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True)
class Document:
    """One merge. ``modules`` maps tower names to modules; the key ``None`` stands for every
    tower, where the document has ``models`` or ``slices`` of its own.

    ``tokenizer`` and ``chat_template`` are the settings as written, ``None`` where absent.
    """

    merge_method: str
    modules: Mapping[str | None, Module]
    base_model: ModelReference | None
    dtype: DType | None
    out_dtype: DType | None
    parameters: Parameters
    tokenizer: Value | None
    chat_template: Value | None
    name: str | None
    place: Place
    method_place: Place
    base_place: Place | None = None

    def place_of(self, reference: ModelReference) -> Place:
        """Where the document names a model first."""
        for module in self.modules.values():
            for part in module.slices:
                for source in part.sources:
                    if source.model == reference:
                        return source.place
        return self.base_place or self.place

    def blocks(self) -> Iterator[Parameters]:
        """Every ``parameters`` block."""
        yield self.parameters
        for module in self.modules.values():
            yield module.parameters
            for part in module.slices:
                yield part.parameters
                yield from (source.parameters for source in part.sources)

    def references(self) -> list[ModelReference]:
        """Every model that the document mentions, each once, in order."""
        found: dict[ModelReference, None] = {}
        if self.base_model is not None:
            found[self.base_model] = None
        for module in self.modules.values():
            for part in module.slices:
                if part.base_model is not None:
                    found[part.base_model] = None
                found.update((source.model, None) for source in part.sources)
        return list(found)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration file: its documents (stages, the last one makes the output) and text."""

    documents: tuple[Document, ...]
    text: str
    path: Path | None


def load_config(path: Path) -> Configuration:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, or means nothing; the message names file, line and key.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot read the configuration '{path}': {reason}") from error
    return parse_config(text, path.name, path)


def parse_config(text: str, file: str = "config", path: Path | None = None) -> Configuration:
    """The configuration that ``text`` stands for; ``file`` is how messages call it.

    Raises:
        ConfigError: it means nothing; the message names file, line and key.
    """
    values = load_documents(text, file)
    if not values:
        raise ConfigError(f"{file}: the configuration is empty")
    documents = tuple(_document(value) for value in values)
    names: set[str] = set()
    for document in documents:
        if document.name is not None:
            if document.name in names:
                raise document.place.error(f"two stages are named '{document.name}'")
            names.add(document.name)
    return Configuration(documents, text, path)


def _document(value: Value) -> Document:
    keys = value.mapping("a configuration")
    _check_keys(keys, _DOCUMENT_KEYS, _IGNORED_KEYS)
    if "merge_method" not in keys:
        raise value.error("'merge_method' is missing")
    kinds = [key for key in ("models", "slices", "modules") if _present(keys, key)]
    if len(kinds) != 1:
        found = " and ".join(f"'{kind}'" for kind in kinds) or "none of them"
        raise value.error(f"exactly one of 'models', 'slices', 'modules' is needed, found {found}")
    modules: dict[str | None, Module] = {}
    if kinds[0] == "modules":
        for name, item in keys["modules"].mapping("'modules'").items():
            if not name.isprintable():
                raise item.error("a module must have a name")
            modules[name] = _module(item, {"models", "slices", "parameters"})
        if not modules:
            raise keys["modules"].error("'modules' is empty")
    else:
        modules[None] = _slices(value, keys, Parameters())
    if _present(keys, "tokenizer") and _present(keys, "tokenizer_source"):
        raise keys["tokenizer"].error("'tokenizer' and 'tokenizer_source' exclude each other")
    tokenizer = keys.get("tokenizer") if _present(keys, "tokenizer") else None
    if tokenizer is None and _present(keys, "tokenizer_source"):
        tokenizer = keys["tokenizer_source"]
    return Document(
        merge_method=keys["merge_method"].text("'merge_method'"),
        modules=modules,
        base_model=_reference(keys, "base_model"),
        dtype=_dtype(keys, "dtype"),
        out_dtype=_dtype(keys, "out_dtype"),
        parameters=_parameters(keys),
        tokenizer=tokenizer,
        chat_template=keys.get("chat_template") if _present(keys, "chat_template") else None,
        name=_name(keys["name"]) if _present(keys, "name") else None,
        place=value.place,
        method_place=keys["merge_method"].place,
        base_place=keys["base_model"].place if "base_model" in keys else None,
    )


def _name(value: Value) -> str:
    if isinstance(value.content, (int, float)):
        return str(value.content)
    return value.text("'name'")


def _module(value: Value, allowed: set[str]) -> Module:
    keys = value.mapping("a module")
    _check_keys(keys, allowed)
    if _present(keys, "models") == _present(keys, "slices"):
        raise value.error("a module needs either 'models' or 'slices'")
    return _slices(value, keys, _parameters(keys))


def _slices(value: Value, keys: Mapping[str, Value], parameters: Parameters) -> Module:
    if _present(keys, "models"):
        sources = tuple(_source(item, "models") for item in _filled(keys["models"], "'models'"))
        whole = OutputSlice(sources, None, Parameters(), keys["models"].place)
        return Module((whole,), True, parameters, value.place)
    slices = tuple(_output_slice(item) for item in _filled(keys["slices"], "'slices'"))
    return Module(slices, False, parameters, value.place)


def _output_slice(value: Value) -> OutputSlice:
    keys = value.mapping("a slice")
    if "sources" not in keys:
        raise value.error("a slice needs 'sources', a list of models with their layers")
    _check_keys(keys, {"sources", "base_model", "parameters"})
    sources = tuple(_source(item, "sources") for item in _filled(keys["sources"], "'sources'"))
    return OutputSlice(sources, _reference(keys, "base_model"), _parameters(keys), value.place)


def _source(value: Value, where: str) -> Source:
    if isinstance(value.content, str):  # a bare name among `models`
        return Source(read_reference(value), None, Parameters(), value.place)
    keys = value.mapping(f"an entry of '{where}'")
    allowed = {"model", "parameters"} | ({"layer_range"} if where == "sources" else set())
    if "layer_range" in keys and where == "models":
        raise keys["layer_range"].error(
            "'models' takes whole models; to choose layers write 'slices' with 'sources'"
        )
    _check_keys(keys, allowed)
    if "model" not in keys:
        raise value.error("'model' is missing")
    layer_range = None
    if _present(keys, "layer_range"):
        layer_range = _layer_range(keys["layer_range"])
    return Source(read_reference(keys["model"]), layer_range, _parameters(keys), value.place)


def _layer_range(value: Value) -> tuple[int, int]:
    numbers = [item.content for item in value.items("'layer_range'")]
    if len(numbers) != 2 or not all(type(number) is int for number in numbers):
        raise value.error("'layer_range' must be two whole numbers, [first, end), end excluded")
    return numbers[0], numbers[1]


def _parameters(keys: Mapping[str, Value]) -> Parameters:
    return read_parameters(keys["parameters"]) if _present(keys, "parameters") else Parameters()


def _reference(keys: Mapping[str, Value], key: str) -> ModelReference | None:
    return read_reference(keys[key]) if _present(keys, key) else None


def _dtype(keys: Mapping[str, Value], key: str) -> DType | None:
    if not _present(keys, key):
        return None
    name = keys[key].text(f"'{key}'")
    dtype = _DTYPES.get(name.removeprefix("torch."))
    if dtype is None:
        known = [dtype.name for dtype in (BF16, F16, F32, F64)]
        if name in BY_NAME or name.startswith("float8"):
            reason = f"is not a type that tensors are merged into; known: {', '.join(known)}"
        else:
            reason = f"is no dtype{nearest(name, known)}"
        raise keys[key].error(f"'{name}' {reason}")
    return dtype


def _present(keys: Mapping[str, Value], key: str) -> bool:
    return key in keys and keys[key].content is not None


def _filled(value: Value, what: str) -> list[Value]:
    items = value.items(what)
    if not items:
        raise value.error(f"{what} is empty")
    return items


def _check_keys(
    keys: Mapping[str, Value], allowed: set[str], ignored: set[str] | frozenset[Any] = frozenset()
) -> None:
    for key, value in keys.items():
        if key not in allowed and key not in ignored:
            raise value.error(f"unknown key {key!r}{nearest(key, allowed)}")
