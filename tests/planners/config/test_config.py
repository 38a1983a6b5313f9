from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, F16
from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.config import load_config, parse_config
from mergeloom.planners.config.model_reference import Location, ModelReference, parse_reference
from mergeloom.planners.config.yaml_values import load_documents

WRONG = {
    "nothing": ("", "config.yml: the configuration is empty"),
    "no yaml": ("a: [1,\nb: ]]", "not valid YAML"),
    "no mapping": ("- a", "config.yml:1: a configuration must be a mapping, not a list"),
    "no method": ("models: [a]", "'merge_method' is missing"),
    "no models": ("merge_method: linear", "exactly one of 'models', 'slices', 'modules'"),
    "both": (
        "merge_method: linear\nmodels: [a]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        "found 'models' and 'slices'",
    ),
    "misspelt key": (
        "merge_metod: linear\nmodels: [a]",
        "config.yml:1: merge_metod: unknown key 'merge_metod'; did you mean 'merge_method'?",
    ),
    "misspelt nested key": (
        "merge_method: linear\nmodels:\n  - model: a\n    paramters: {weight: 1}",
        "config.yml:4: models[0].paramters: unknown key 'paramters'; did you mean 'parameters'?",
    ),
    "range on models": (
        "merge_method: linear\nmodels:\n- {model: a, layer_range: [0, 4]}",
        "config.yml:3: models[0].layer_range: 'models' takes whole models",
    ),
    "three numbers": (
        "merge_method: x\nslices: [{sources: [{model: a, layer_range: [0, 4, 5]}]}]",
        "slices[0].sources[0].layer_range: 'layer_range' must be two whole numbers",
    ),
    "dtype": (
        "merge_method: x\nmodels: [a]\ndtype: bfloat61",
        "config.yml:3: dtype: 'bfloat61' is no dtype; did you mean 'bfloat16'?",
    ),
    "integer dtype": ("merge_method: x\nmodels: [a]\ndtype: int8", "not a type that tensors are"),
    "duplicate": (
        "merge_method: x\nmerge_method: y\nmodels: [a]",
        ":2: 'merge_method' stands here twice",
    ),
    "tag": ("merge_method: !!python/object/apply:os.system [ls]\nmodels: [a]", "config.yml:1"),
    "tag with a line break": ("merge_method: !<a%0Ab> x", "the tag 'a\\nb' is not allowed"),
    "directive": ("%TAG ! tag:x\n---\nmerge_method: x", ":1: YAML directives are not allowed"),
    "deep flow": ("a: " + "[" * 100_000 + "]" * 100_000, ":1: the document is too large or too"),
    "deep blocks": ("- " * 100_000, ":1: the document is too large or too deep"),
    "itself": ("a: &a [*a]", "too large or too deep"),
    "long path": (
        "".join("  " * i + "k" * 999 + ":\n" for i in range(3)) + "  " * 9 + "- x",
        "too large or too deep",
    ),
    "endless number": ("a: 1" + ":59" * 200_000, "not a value: '1:59:59"),
    "key that is no text": ("[a]: 1", "a key must be a name"),
    "control characters": (
        'merge_method: x\nmodels: [a]\n"p\\e[2J\\n": 1',
        "unknown key 'p\\x1b[2J\\n'",
    ),
    "model with a line break": ('merge_method: x\nmodels: ["a\\nb"]', "models[0]: a model must be"),
    "method with a line break": ('merge_method: "a\\nb"\nmodels: [a]', "must be a name"),
    "infinite": (
        "merge_method: x\nmodels: [{model: a, parameters: {weight: -.inf}}]",
        "models[0].parameters.weight: a finite number is needed here, not -inf",
    ),
    "infinite text": ("merge_method: x\nmodels: [a]\nparameters: {t: [1e999, 1]}", "finite"),
    "list for a name": ("merge_method: x\nmodels: [a]\nname: [a]", "'name' must be a name"),
    "text parameter": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: lots}}]",
        "models[0].parameters.weight: a number, true or false is needed here, not 'lots'",
    ),
    "filter without value": (
        "merge_method: x\nmodels: [a]\nparameters: {t: [{filter: mlp}]}",
        "parameters.t[0]: an entry with a filter needs 'value'",
    ),
    "empty gradient": ("merge_method: x\nmodels: [a]\nparameters: {t: []}", "at least one value"),
    "empty revision": ("merge_method: x\nmodels: ['a@']", "'a@' is no model reference"),
    "empty slices": ("merge_method: x\nslices: []", "'slices' is empty"),
    "sources": ("merge_method: x\nslices: [{}]", "slices[0]: a slice needs 'sources'"),
    "module": ("merge_method: x\nmodules: {m: {}}", "modules.m: a module needs either"),
    "two tokenizers": (
        "merge_method: x\nmodels: [a]\ntokenizer: {source: base}\ntokenizer_source: base",
        "exclude each other",
    ),
    "two stages of a name": (
        "merge_method: x\nmodels: [a]\nname: s\n---\nmerge_method: x\nmodels: [a]\nname: s",
        "two stages are named 's'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_place_and_cause(case: str) -> None:
    text, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.yml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_becomes_records() -> None:
    configuration = parse_config(
        """
        slices:
          - sources:
              - {model: a/b@main, layer_range: [0, 4], parameters: {weight: 1}}
              - model: {model: {path: c/d, revision: x}, lora: e/f}
                layer_range: [1, 5]
            base_model: a/b
            parameters: {t: [0, 1]}
        merge_method: slerp
        base_model: a/b
        dtype: bfloat16
        out_dtype: float16
        parameters:
          t:
            - {filter: mlp, value: [0, 0.5]}
            - value: 1e-1
        """
    )
    (document,) = configuration.documents
    (part,) = document.modules[None].slices
    assert [str(source.model) for source in part.sources] == ["a/b@main", "c/d@x+e/f"]
    assert [source.layer_range for source in part.sources] == [(0, 4), (1, 5)]
    assert (document.dtype, document.out_dtype) == (BF16, F16)
    assert [str(reference) for reference in document.references()] == [
        "a/b",
        "a/b@main",
        "c/d@x+e/f",
    ]
    entries = document.parameters.entries["t"]
    assert [(entry.filter, entry.value) for entry in entries] == [("mlp", (0, 0.5)), (None, 0.1)]
    assert str(entries[1].place) == "config:16: parameters.t[1]"


def test_several_documents_are_stages() -> None:
    text = """
merge_method: linear
models: [a, b]
name: one
---
merge_method: slerp
models: [one, c]
"""
    assert [document.name for document in parse_config(text).documents] == ["one", None]


def test_alias_bombs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    with pytest.raises(ConfigError, match="too large or too deep"):
        load_documents("\n".join(lines), "bomb.yml")


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match="too large"):
        load_config(Path("/dev/zero"))
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        load_config(tmp_path / "binary.yml")


def message(text: str) -> str:
    """What is wrong with a configuration; empty if nothing is."""
    try:
        parse_config(text)
    except ConfigError as error:
        return str(error)
    return ""


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert message(text).isprintable()


words = st.text("abcXYZ09-_./", min_size=1, max_size=12)


@given(words, st.none() | words, st.none() | words, st.none() | words)
def test_references_round_trip(
    path: str, revision: str | None, adapter: str | None, adapter_revision: str | None
) -> None:
    lora = None if adapter is None else Location(adapter, adapter_revision)
    reference = ModelReference(Location(path, revision), lora)
    assert parse_reference(str(reference)) == reference
