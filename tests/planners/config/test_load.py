"""Reading configurations: YAML, JSON, Python data, standard input, and other text."""

from __future__ import annotations

import enum
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.load import config_from_data, load_config, parse_config
from mergeloom.planners.config.model_reference import Location, ModelReference, parse_reference
from mergeloom.planners.config.yaml_values import load_documents

words = st.text("abcXYZ09-_./", min_size=1, max_size=12)


def test_yaml_merge_keys_are_read() -> None:
    text = """
merge_method: ties
license: &one {weight: 1, density: 0.5}
author: &two {weight: 2, density: 0.25}
models:
- {model: a, parameters: {<<: *one, weight: 3}}
- model: b
  parameters:
    weight: 4
    <<: [*two, *one]
"""
    (document,) = parse_config(text).documents
    (part,) = document.modules[None].slices
    values = [
        {name: entry.value for name, (entry,) in source.parameters.entries.items()}
        for source in part.sources
    ]
    assert values == [{"weight": 3, "density": 0.5}, {"weight": 4, "density": 0.25}]
    assert str(part.sources[0].parameters.entries["density"][0].place) == (
        "config:3: models[0].parameters.density"
    )


@pytest.mark.parametrize(
    "line",
    ["x-half: &h {weight: 0.5}", "halves: [&h {weight: 0.5}, 3]", "modell: &h {weight: 0.5}"],
)
def test_blocks_written_to_be_repeated_are_no_unknown_keys(line: str) -> None:
    text = f"{line}\nmerge_method: linear\nmodels: [{{model: a, parameters: *h}}, b]\n"
    text += "parameters: {weight: 1}"
    found = [warning.cause for warning in parse_config(text).warnings]
    assert found == (["unknown key 'modell', it is ignored"] if "modell" in line else [])
    alone = [warning.cause for warning in parse_config(text.replace("*h", "{}")).warnings]
    assert alone[0] == f"unknown key '{line.partition(':')[0]}', it is ignored"


def test_json_is_a_configuration() -> None:
    data = {
        "merge_method": "linear",
        "models": [{"model": "a\U0001f600/b", "parameters": {"weight": [1e-3, 2]}}],
        "dtype": "bfloat16",
    }
    for indent in (None, 2, "\t"):
        (document,) = parse_config(json.dumps(data, indent=indent)).documents
        (source,) = document.modules[None].slices[0].sources
        assert str(source.model) == "a\U0001f600/b"
        assert source.parameters.entries["weight"][0].value == (0.001, 2)
    with pytest.raises(ConfigError, match=r"config:6: dtype: 'x' is not a dtype"):
        parse_config(json.dumps(data | {"dtype": "x", "models": ["a"]}, indent=2))


def test_python_data_is_a_configuration() -> None:
    class Method(enum.Enum):
        LINEAR = "linear"

    data = {
        "merge_method": Method.LINEAR,
        "models": (
            {"model": Path("a") / "b", "parameters": {"weight": np.float32(0.5)}},
            {"model": "c", "parameters": {"weight": np.array([0.25, 1])}},
        ),
        "name": np.int64(3),
        "parameters": {"normalize": np.bool_(True)},
        "dtype": torch.bfloat16,
        "out_dtype": np.dtype("float32"),
    }
    (document,) = config_from_data(data).documents
    assert (str(document.dtype), str(document.out_dtype)) == ("bfloat16", "float32")
    first, second = document.modules[None].slices[0].sources
    assert (str(first.model), document.name) == ("a/b", "3")
    assert first.parameters.entries["weight"][0].value == 0.5
    assert second.parameters.entries["weight"][0].value == (0.25, 1)
    with pytest.raises(
        ConfigError,
        match=r"config: models\[0\].x: a configuration cannot have a value of type object",
    ):
        config_from_data({"models": [{"x": object()}]})
    loop: dict[str, object] = {}
    loop["x"] = loop
    with pytest.raises(ConfigError, match="too deeply"):
        config_from_data(loop)


def test_a_configuration_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.TextIOWrapper(io.BytesIO("merge_method: linear\nmodels: [a]\nx: é".encode()))
    monkeypatch.setattr("sys.stdin", given)
    configuration = load_config(Path("-"))
    assert configuration.path is None
    assert str(configuration.warnings[0]).startswith("stdin:3: x: unknown key 'x'")


def test_alias_bombs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    with pytest.raises(ConfigError, match="too large or too deep"):
        load_documents("\n".join(lines), "bomb.yml", Findings())


def test_absent_huge_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_config(Path("/dev/zero"))
    (tmp_path / "huge.yml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="too large"):
        load_config(tmp_path / "huge.yml")
    (tmp_path / "latin.yml").write_bytes("models:\n- été".encode("latin-1"))
    with pytest.raises(
        ConfigError, match=r"latin\.yml:2: not UTF-8 text: byte 0xe9: save it as UTF"
    ):
        load_config(tmp_path / "latin.yml")


def test_a_closed_standard_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="standard input: it is closed"):
        load_config(Path("-"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b\nc:\u00a0d\ne: 1", "file:2: a space of another kind (U+00A0): write an ordinary"),
        ("a:\n-\u3000b: 1\n  c: 1", "file:2: a space of another kind (U+3000)"),
        ("a: # \u3000\n- b: 1\n c: 1", "file:3: not valid YAML: did not find expected key"),
        ("a:\n\u2013 b: 1\n  c: 1", "file:2: '\u2013' (U+2013) before an item: write '-'"),
        ("a:\n* b: 1\n", "file:2: '*' (U+002A) before an item: write '-'"),
        ("a: 1\nb: {c: *w}", "file:2: the alias '*w' is not defined: write '&w' before the value"),
        ("é: 1\nb: \x01", "file:2: a control character (#x01): remove it"),
        ("a: {b: 1, c:}", "is a space missing after a colon?"),
    ],
)
def test_what_is_no_yaml_is_said_in_plain_words(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_documents(text, "file", Findings())
    assert expected in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_clear_error(text: str) -> None:
    try:
        found = parse_config(text).warnings
    except ConfigError as error:
        found = error.findings
    assert all(str(each).isprintable() for each in found)


@given(words, st.none() | words, st.none() | words, st.none() | words)
def test_references_round_trip(
    path: str, revision: str | None, adapter: str | None, adapter_revision: str | None
) -> None:
    lora = None if adapter is None else Location(adapter, adapter_revision)
    reference = ModelReference(Location(path, revision), lora)
    assert parse_reference(str(reference)) == reference


def test_a_configuration_may_begin_like_a_model_card(tmp_path: Path) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(
        "---\nlicense: mit\nname: one\nmerge_method: linear\nmodels: [a]\n---\n"
        "# the second stage\nmerge_method: linear\nmodels: [one]\n"
    )
    assert [each.name for each in load_config(path).documents] == ["one", None]
