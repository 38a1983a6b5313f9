"""The keys that each kind of mapping in a configuration may have, and hints for misplaced keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest, suggest
from mergeloom.methods import registry
from mergeloom.methods.declare import Method
from mergeloom.planners.config.findings import IGNORED, MISPLACED, UNKNOWN_KEY, Findings
from mergeloom.planners.config.yaml_values import Value, is_name, shortened

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MappingKind:
    """One kind of mapping: what it is, where it occurs, and the keys it may have."""

    title: str
    where: str
    keys: frozenset[str]
    ignored: frozenset[str] = frozenset()


CONFIGURATION = MappingKind(
    "a configuration",
    "at the top level",
    frozenset(
        {
            "merge_method",
            "models",
            "slices",
            "modules",
            "base_model",
            "dtype",
            "out_dtype",
            "parameters",
            "tensors",
            "tokenizer",
            "tokenizer_source",
            "chat_template",
            "name",
            "quantize",
        }
    ),
    frozenset({"license", "description", "author", "tags"}),
)
MODULE = MappingKind("a module", "at a module", frozenset({"slices", "models", "parameters"}))
SLICE = MappingKind(
    "a slice", "at an entry of 'slices'", frozenset({"sources", "base_model", "parameters"})
)
SOURCE = MappingKind(
    "an entry of 'sources'",
    "at an entry of 'sources'",
    frozenset({"model", "layer_range", "parameters"}),
)
MODEL = MappingKind(
    "an entry of 'models'", "at an entry of 'models'", frozenset({"model", "parameters"})
)
REFERENCE = MappingKind(
    "a model", "at a model that is a mapping", frozenset({"model", "lora", "override_architecture"})
)
LOCATION = MappingKind("a model", "at a model that is a mapping", frozenset({"path", "revision"}))
FILTERED = MappingKind(
    "an entry of a parameter", "at a value of a parameter", frozenset({"filter", "value"})
)
TOKENIZER = MappingKind(
    "'tokenizer'",
    "under 'tokenizer'",
    frozenset({"source", "tokens", "pad_to_multiple_of", "transplant"}),
)
TRANSPLANT = MappingKind(
    "'transplant'",
    "under 'tokenizer.transplant'",
    frozenset(
        {
            "method",
            "k",
            "cosine",
            "weights",
            "subword",
            "prefix",
            "exclude_undertrained",
            "seed",
        }
    ),
)
TOKEN = MappingKind(
    "a token", "at a token under 'tokenizer.tokens'", frozenset({"source", "force"})
)
TOKEN_SOURCE = MappingKind(
    "the source of a token",
    "at the source of a token",
    frozenset({"kind", "model", "token", "token_id"}),
)

MAPPING_KINDS = (
    *(CONFIGURATION, MODULE, SLICE, SOURCE, MODEL, TOKENIZER, TOKEN, REFERENCE, LOCATION),
    TRANSPLANT,
)

_COMMAND_LINE_OPTIONS = {
    "random_seed": "--seed N",
    "seed": "--seed N",
    "out_path": "the output directory, OUT of 'mergeloom merge CONFIG OUT'",
    "output": "the output directory, OUT of 'mergeloom merge CONFIG OUT'",
    "output_path": "the output directory, OUT of 'mergeloom merge CONFIG OUT'",
    "output_dir": "the output directory, OUT of 'mergeloom merge CONFIG OUT'",
    "out_shard_size": "--max-shard-size SIZE",
    "max_shard_size": "--max-shard-size SIZE",
    "device": "--device NAME",
    "cuda": "--device cuda",
    "num_threads": "--threads N",
    "threads": "--threads N",
    "ram": "--ram SIZE",
    "vram": "--vram SIZE",
}
OTHER_PROGRAMS = {
    "experts": "a mixture of experts",
    "gate_mode": "a mixture of experts",
    "genome": "an evolutionary search",
    "layer_slices": "bakllama, an older stacker of layers",
}
"""Keys that identify configurations of other programs, and their purpose."""
_WITHOUT_EFFECT = {
    "override_architecture": "the architecture is inferred from the tensors",
    "residual_weight": "no program uses it",
    "lora_merge_cache": "nothing is cached",
    "transformers_cache": "HF_HUB_CACHE sets the hub cache",
    "copy_tokenizer": "the tokenizer is always copied",
    "lazy_unpickle": "tensors are always read on demand",
    "low_cpu_memory": "--ram bounds the memory",
    "trust_remote_code": "no code of a model is run",
    "clone_tensors": "nothing needs it",
    "safe_serialization": "only safetensors files are written",
    "write_model_card": "the model card is always written",
}


class Fields:
    """The keys of one mapping of a known kind; unknown keys become findings.

    If ``method``, the merge method, is known, its parameters are recognised among the keys.
    """

    def __init__(
        self, value: Value, level: MappingKind, findings: Findings, method: Method | None = None
    ) -> None:
        self.place = value.place
        self._value = value
        self._level = level
        self._findings = findings
        self._method = method
        self._keys: Mapping[str, Value] = value.mapping(level.title)
        for key, item in self._keys.items():
            if key not in level.keys and key not in level.ignored:
                self._report_unknown(key, item)

    def __contains__(self, key: str) -> bool:
        """Whether the key is present and has a value."""
        return key in self._keys and self._keys[key].has_value

    def __getitem__(self, key: str) -> Value:
        return self._keys[key]

    @property
    def empty(self) -> list[str]:
        """The keys whose value is an empty mapping."""
        return [key for key, value in self._keys.items() if value.content == {}]

    @property
    def without_value(self) -> list[str]:
        """The keys that are present and have no value."""
        return [key for key in self._keys if key not in self]

    def read(self, key: str, read: Callable[[Value], T]) -> T | None:
        """``read`` applied to the value of ``key``; ``None`` if it is absent or invalid."""
        return self._findings.attempt(read, self._keys[key]) if key in self else None

    def require(self, key: str, what: str = "") -> Value:
        """The value of ``key``.

        Raises:
            ConfigError: there is none.
        """
        if key in self:
            return self._keys[key]
        if key in self._keys:
            raise self._keys[key].error(f"'{key}' has no value", what)
        raise self._value.error(f"'{key}' is missing", self.misspelling(key) or what)

    def misspelling(self, *keys: str) -> str:
        """A suggestion that an unknown key is a misspelling of a missing one."""
        unknown = [name for name in self._keys if name not in self._level.keys]
        for key in keys:
            near = nearest(key, unknown, 0.7)
            if near is not None:
                return f"is {shortened(repr(near))} a misspelling of '{key}'?"
        return ""

    def _report_unknown(self, key: str, item: Value) -> None:
        shown = shortened(repr(key))
        if key in _WITHOUT_EFFECT:
            cause = f"{shown} has no effect: {_WITHOUT_EFFECT[key]}"
            self._findings.warn(item.place, cause, "remove it", UNKNOWN_KEY)
            return
        if key in OTHER_PROGRAMS and self._level is CONFIGURATION:
            cause = f"{shown} belongs to a configuration for {OTHER_PROGRAMS[key]}{IGNORED}"
            self._findings.warn(item.place, cause, "remove it", UNKNOWN_KEY)
            return
        misplaced = self._right_place(key, item)
        if misplaced:
            self._findings.warn(item.place, f"{shown} has no effect here", misplaced, MISPLACED)
            return
        remedy = suggest(key, self._level.keys)
        is_like_none = nearest(key, self._level.keys) is None
        if is_like_none and item.is_repeated and self._level is CONFIGURATION:
            return  # it is written to be repeated, with '*' or '<<'
        if is_like_none and self._method is not None:
            if _is_parameter(key):
                cause = f"{shown} is a parameter of other methods, not of '{self._method.name}'"
                self._findings.warn(item.place, f"{cause}{IGNORED}", "remove it", UNKNOWN_KEY)
                return
            named = {p.name for p in (*self._method.model_parameters, *self._method.settings)}
            near = nearest(key, named, 0.75)
            remedy = f"did you mean '{near}', under 'parameters'?" if near else remedy
        self._findings.warn(item.place, f"unknown key {shown}{IGNORED}", remedy, UNKNOWN_KEY)

    def _right_place(self, key: str, item: Value) -> str:
        """A remedy that says where a misplaced key belongs; empty if it is not a known key."""
        level = self._level
        if level in (SOURCE, MODEL) and key in {"revision", "lora", "adapter"}:
            sign = "@" if key == "revision" else "+"
            model = self._keys.get("model")
            name = model.content if model is not None else None
            name = name if isinstance(name, str) else "MODEL"
            text = _as_name(item) or key.upper()
            return f"write 'model: {name}{sign}{text}'" if is_name(f"{name}{text}") else ""
        if key == "layer_range" and level is MODEL:
            return "'models' merges whole models; to select layers, use 'slices' with 'sources'"
        if nearest(key, level.keys, 0.88):
            return ""
        if self._method is not None:
            if key in {p.name for p in self._method.settings}:
                return "write it under the global 'parameters'"
            if key in {p.name for p in self._method.model_parameters}:
                return "write it under 'parameters'"
        if key in _COMMAND_LINE_OPTIONS:
            return f"give it as {_COMMAND_LINE_OPTIONS[key]}"
        return where_it_belongs(key, level)


def _as_name(item: Value) -> str:
    """The value as a name, or its only key ``path``; empty if it is neither."""
    content = item.content
    if isinstance(content, list) and len(content) == 1:
        content = content[0].content
    if isinstance(content, dict) and "path" in content:
        content = content["path"].content
    return str(content) if isinstance(content, (str, int)) else ""


def _is_parameter(name: str) -> bool:
    """Whether any method has a parameter of this name."""
    methods = map(registry.get, registry.names())
    return any(name in {p.name for p in (*m.model_parameters, *m.settings)} for m in methods)


def where_it_belongs(key: str, level: MappingKind | None = None) -> str:
    """Where a key that is unknown at ``level`` belongs; empty if it is known nowhere."""
    levels = [each for each in MAPPING_KINDS if each is not level and key in each.keys]
    return f"write it {levels[0].where}" if levels else ""


def command_line_option(key: str) -> str:
    """The command-line option that does what the key was meant to do."""
    return _COMMAND_LINE_OPTIONS.get(key, "")
