"""``--set``: values that take the place of what a configuration says."""

from __future__ import annotations

from typing import Any

import pytest

from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.load import parse_config
from mergeloom.planners.config.settings import parse_setting, setting_from_value
from mergeloom.planners.config.yaml_values import load_documents

TEXT = """# of mine
merge_method: slerp
base_model: a
models: [a, {model: b, parameters: {}}]
parameters:
  t: [0, 1]
dtype: bfloat16
"""


def effective(*settings: str, text: str = TEXT) -> Any:
    found = parse_config(text, "merge.yml", settings=[parse_setting(each) for each in settings])
    values = load_documents(found.text, "again", Findings())
    return (
        [value.without_places() for value in values]
        if len(values) > 1
        else values[0].without_places()
    )


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("parameters.t=0.3", ("parameters", "t"), 0.3),
        ("parameters.t=[0, 0.5, 1]", ("parameters", "t"), [0, 0.5, 1]),
        (
            "parameters.t=[{filter: mlp, value: 1}, {value: 0}]",
            ("parameters", "t"),
            [{"filter": "mlp", "value": 1}, {"value": 0}],
        ),
        ("models[1].model=c", ("models", 1, "model"), "c"),
        ("models.1.model=x=y", ("models", 1, "model"), "x=y"),
        ('chat_template="chatml"', ("chat_template",), "chatml"),
        ("tokenizer.source=union", ("tokenizer", "source"), "union"),
        (
            'tokenizer.tokens."<|a.b|>".force=true',
            ("tokenizer", "tokens", "<|a.b|>", "force"),
            True,
        ),
    ],
)
def test_a_setting_replaces_the_value_at_its_path(
    setting: str, path: tuple[str | int, ...], value: Any
) -> None:
    found = effective(setting)
    for step in path:
        found = found[step]
    assert found == value


def test_other_values_stay_as_they_are() -> None:
    found = effective("parameters.t=0.3")
    assert found.pop("parameters") == {"t": 0.3}
    assert found == {
        key: value for key, value in effective("dtype=bfloat16").items() if key in found
    }
    assert len(found) == 4


def test_a_bare_name_may_get_parameters() -> None:
    text = "merge_method: linear\nmodels: [a, b]\n"
    found = effective("models[0].parameters.weight=1", "models[1].parameters.weight=2", text=text)
    assert found["models"][1] == {"model": "b", "parameters": {"weight": 2}}


def test_an_empty_value_removes() -> None:
    assert "dtype" not in effective("dtype=")
    assert effective("models[1]=", "models=[a, b]")["models"] == ["a", "b"]


def test_settings_select_documents_by_number() -> None:
    text = TEXT + "name: one\n---\n" + TEXT
    first, second = effective("[0].parameters.t=0.25", text=text)
    assert (first["parameters"]["t"], second["parameters"]["t"]) == (0.25, [0, 1])


def test_python_data_are_settings_too() -> None:
    setting = setting_from_value("parameters.t", [0, 0.5])
    assert parse_config(TEXT, settings=[setting]).documents[0].parameters.entries["t"][0].value == (
        0,
        0.5,
    )
    assert setting_from_value("dtype", None).value == ""
    assert setting_from_value("name", "yes").value == "'yes'"  # stays a text


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "t",
            "--set t: a setting is a path of keys, '=' and a value: write --set parameters.t=0.3",
        ),
        ("=3", "--set =3: a setting is a path"),
        ("parameters..t=3", "a setting is a path"),
        ("parameters.t=[", "--set parameters.t=[: its value: not valid YAML"),
        ("parameters.t=x", "--set parameters.t=x: 't' must be a number, not 'x'"),
        (
            "paramters.t=1",
            "--set paramters.t=1: unknown key 'paramters': did you mean 'parameters'",
        ),
        ("parameters.tt=1", "'slerp' has no parameter 'tt': did you mean 't'?"),
        ("merge_method=slrp", "--set merge_method=slrp: unknown merge method 'slrp': did you mean"),
        ("models.model=c", "'models' is a list of 2: write models[0].model, [0] to [1]"),
        ("models[2].model=c", "'models' has no entry [2]: there are [0] to [1]"),
        ("dtype.x=1", "'dtype' is 'bfloat16', which has no keys"),
        ("dtypes=", "there is no 'dtypes' to remove: did you mean 'dtype'?"),
        ("dtype[0]=x", "'dtype' is 'bfloat16', not a list"),
        ("[1].dtype=x", "there is no document [1]: there is [0] only"),
        ("[0]=x", "a whole document cannot be set: name a key in it"),
        ("dtype=[a]\n---\nb", "it has several values"),
    ],
)
def test_an_error_names_the_setting(setting: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        effective(setting)
    assert says in str(error.value)
    assert error.value.place is not None
    assert error.value.place.file.startswith("--set ")


def test_a_setting_without_number_for_several_documents_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 documents: write \[0\].dtype for the first"):
        effective("dtype=float16", text=TEXT + "name: one\n---\n" + TEXT)
