"""Reads the values of one merge document into records, collecting all errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F16, F32, F64, DType
from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.suggest import nearest, suggest
from mergeloom.methods import registry
from mergeloom.methods.declare import Method
from mergeloom.planners.config.config import (
    QUANTIZE,
    MergeDocument,
    Module,
    OutputSlice,
    SourceEntry,
)
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import (
    CONFIGURATION,
    MODEL,
    MODULE,
    OTHER_PROGRAMS,
    SLICE,
    SOURCE,
    Fields,
    MappingKind,
)
from mergeloom.planners.config.model_reference import ModelReference, read_reference
from mergeloom.planners.config.parameter_blocks import read_parameters
from mergeloom.planners.config.parameters import Parameters
from mergeloom.planners.config.tokenizer import (
    UNION,
    TokenizerSettings,
    read_tokenizer,
    read_tokenizer_source,
)
from mergeloom.planners.config.yaml_values import Value

T = TypeVar("T")

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

_METHOD_REMEDY = "add it, as 'merge_method: linear'; 'mergeloom methods' lists them"
_MODEL_KEYS = frozenset({"models", "slices", "modules"})


def read_document(value: Value, findings: Findings) -> MergeDocument | None:
    """The merge described by a document; ``None`` if errors, added to ``findings``, prevent
    reading it."""
    return findings.attempt(_Reader(findings).document, value)


@dataclass
class _Reader:
    findings: Findings
    method: Method | None = None

    def document(self, value: Value) -> MergeDocument | None:
        keys = value.mapping("a configuration")
        other = next(
            (key for key in OTHER_PROGRAMS if key in keys and not keys.keys() & _MODEL_KEYS), None
        )
        if other is not None:
            raise keys[other].error(
                f"'{other}' belongs to a configuration for {OTHER_PROGRAMS[other]}, "
                "which mergeloom does not make",
                "'mergeloom merge' needs 'merge_method' with 'models', 'slices' or 'modules'",
                "other-kind",
            )
        if "model_type" in keys and not keys.keys() & {"merge_method", "base_model", *_MODEL_KEYS}:
            raise value.error(
                "this is the configuration of a model, not of a merge",
                "'mergeloom inspect DIR' shows the model in a directory, "
                "'mergeloom init MODEL MODEL' writes the configuration of a merge",
                "other-kind",
            )
        written = keys.get("merge_method")
        name = None
        if written is not None and written.has_value:
            name = self.findings.attempt(written.text, "'merge_method'")
        if written is not None and name is not None:
            self.method = self.findings.attempt(_method_named, written, name)
        if written is None:
            self.method = _misspelt_method(keys)
        fields = Fields(value, CONFIGURATION, self.findings, self.method)
        if written is None or not written.has_value:
            self.findings.attempt(fields.require, "merge_method", _METHOD_REMEDY)
        modules = self.findings.attempt(self._modules, value, fields)
        document = MergeDocument(
            merge_method=name or "",
            modules=modules or {},
            base_model=self._reference(fields, "base_model"),
            dtype=fields.read("dtype", lambda each: read_dtype(each, "dtype")),
            out_dtype=fields.read("out_dtype", lambda each: read_dtype(each, "out_dtype")),
            parameters=self._parameters(fields),
            tokenizer=self._tokenizer(fields),
            chat_template=fields.read("chat_template", lambda each: each),
            name=fields.read("name", read_name),
            quantize=fields.read("quantize", _quantize),
            place=value.place,
            method_place=written.place if written is not None else value.place,
            base_place=fields["base_model"].place if "base_model" in fields else None,
        )
        return document if modules is not None else None

    def _modules(self, value: Value, fields: Fields) -> dict[str | None, Module]:
        kinds = [key for key in ("models", "slices", "modules") if key in fields]
        if len(kinds) != 1:
            found = " and ".join(f"'{kind}'" for kind in kinds) or "none of them"
            remedy = (
                f"remove all but '{kinds[0]}'"
                if kinds
                else fields.misspelling(*sorted(_MODEL_KEYS))
            )
            remedy = remedy or "'models' is a list of the models to merge"
            raise value.error(
                f"exactly one of 'models', 'slices', 'modules' is required, found {found}", remedy
            )
        for key in [key for key in fields.without_value if key in _MODEL_KEYS]:
            cause = f"'{key}' is empty and has no effect beside '{kinds[0]}'"
            self.findings.warn(fields[key].place, cause, "remove it", "no-effect")
        if kinds[0] != "modules":
            return {None: self._slices(fields, Parameters())}
        modules: dict[str | None, Module] = {}
        for name, item in fields["modules"].mapping("'modules'").items():
            if not name.isprintable():
                raise item.error("a module must have a name")
            module = self.findings.attempt(self._module, item)
            if module is not None:
                modules[name] = module
        return modules

    def _module(self, value: Value) -> Module:
        fields = Fields(value, MODULE, self.findings, self.method)
        if ("models" in fields) == ("slices" in fields):
            raise value.error("a module needs either 'models' or 'slices'")
        return self._slices(fields, self._parameters(fields))

    def _slices(self, fields: Fields, parameters: Parameters) -> Module:
        if "models" in fields:
            models = fields["models"]
            sources = self._read_each(
                models.items("'models'"), lambda each: self._source(each, MODEL)
            )
            whole = OutputSlice(sources, None, Parameters(), models.place)
            return Module((whole,), True, parameters, fields.place)
        slices = self._read_each(fields["slices"].items("'slices'"), self._slice)
        return Module(slices, False, parameters, fields.place)

    def _slice(self, value: Value) -> OutputSlice:
        fields = Fields(value, SLICE, self.findings, self.method)
        base = self._reference(fields, "base_model")
        parameters = self._parameters(fields)
        written = fields.require("sources", "a slice is a list of models with their layers")
        items = written.items("'sources'")
        sources = self._read_each(items, lambda each: self._source(each, SOURCE))
        return OutputSlice(sources, base, parameters, value.place)

    def _source(self, value: Value, level: MappingKind) -> SourceEntry:
        if isinstance(value.content, str):  # a bare name
            if value.content.startswith("model:"):
                raise value.error(
                    f"a model must be a name, not {value.kind}",
                    "write a space after the colon, 'model: NAME'",
                )
            return SourceEntry(
                read_reference(value, self.findings), None, Parameters(), value.place
            )
        fields = Fields(value, level, self.findings, self.method)
        layer_range = fields.read("layer_range", _layer_range) if level is SOURCE else None
        parameters = self._parameters(fields, per_model=True)
        model = read_reference(fields.require("model"), self.findings)
        return SourceEntry(model, layer_range, parameters, value.place)

    def _read_each(self, items: list[Value], read: Callable[[Value], T]) -> tuple[T, ...]:
        """Apply ``read`` to each item, collecting the errors of all items."""
        found = [self.findings.attempt(read, item) for item in items]
        return tuple(each for each in found if each is not None)

    def _parameters(self, fields: Fields, per_model: bool = False) -> Parameters:
        found = fields.read(
            "parameters",
            lambda each: read_parameters(each, self.method, per_model, self.findings),
        )
        return found or Parameters()

    def _reference(self, fields: Fields, key: str) -> ModelReference | None:
        return fields.read(key, lambda each: read_reference(each, self.findings))

    def _tokenizer(self, fields: Fields) -> TokenizerSettings | None:
        if "tokenizer" in fields and "tokenizer_source" in fields:
            self.findings.error(
                fields["tokenizer"].place,
                "'tokenizer' and 'tokenizer_source' cannot be combined",
                "write the source as 'source' under 'tokenizer'",
            )
        if "tokenizer" in fields.empty:  # all its keys have defaults
            return TokenizerSettings(UNION, fields["tokenizer"].place)
        return fields.read("tokenizer", lambda each: read_tokenizer(each, self.findings)) or (
            fields.read("tokenizer_source", lambda each: read_tokenizer_source(each, self.findings))
        )


def _misspelt_method(keys: Mapping[str, Value]) -> Method | None:
    """The method named under a misspelt key, to check parameters against."""
    near = nearest("merge_method", keys, 0.7)
    name = keys[near].content if near is not None else None
    try:
        return registry.get(name) if isinstance(name, str) else None
    except ConfigError:
        return None


def _method_named(value: Value, name: str) -> Method:
    try:
        return registry.get(name)
    except ConfigError as error:
        raise error.at(value.place) from error


def _quantize(value: Value) -> Value:
    kind = value.text("'quantize'")
    if kind not in QUANTIZE:
        raise value.error(f"'quantize' is '{kind}'", f"it must be one of {', '.join(QUANTIZE)}")
    return value


def read_name(value: Value) -> str:
    """The name of a document's output."""
    if isinstance(value.content, (int, float)):
        return str(value.content)
    return value.text("'name'")


def _layer_range(value: Value) -> tuple[int, int]:
    if not isinstance(value.content, list):
        raise value.error(
            f"'layer_range' must be two whole numbers, not {value.kind}",
            "write [0, 16] for the first sixteen layers: the end is excluded",
        )
    items = value.content
    if len(items) != 2:
        raise value.error("'layer_range' must be two whole numbers, [first, end), end excluded")
    start, stop = (item.integer("a layer of 'layer_range'") for item in items)
    return start, stop


def read_dtype(value: Value, key: str) -> DType:
    """The dtype named by ``key``."""
    name = value.text(f"'{key}'")
    dtype = _DTYPES.get(name.removeprefix("torch."))
    if dtype is not None:
        return dtype
    known = [dtype.name for dtype in (BF16, F16, F32, F64)]
    if name in BY_NAME or name.startswith("float8"):
        raise value.error(
            f"'{name}' is not a dtype that tensors can be merged into", f"known: {', '.join(known)}"
        )
    if re.fullmatch(r"i?q\d\w*", name, re.IGNORECASE):
        raise value.error(
            f"'{name}' is a dtype of GGUF files",
            "write 'dtype: bfloat16'; 'mergeloom export' converts the output to GGUF, and "
            "llama.cpp quantises that file",
        )
    raise value.error(f"'{name}' is not a dtype", suggest(name, known))
