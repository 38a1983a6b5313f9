"""The model card: relations, licences, and the layers as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import mergeloom
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.output.licences import licence_of
from tests.planners.support import llama, llamas


def card(folder: Path, config: dict[str, Any], **options: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of the model card of a merge's plan."""
    planned = mergeloom.plan(config, search=folder, **options)
    (file,) = (file for file in planned.plan.side_files if file.name == "README.md")
    text = b"".join(file.pieces()).decode()
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def licence(directory: Path, text: str) -> None:
    (directory / "README.md").write_text(f"---\n{text}\n---\n# A model\n")


LINEAR: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1}}


def test_one_licence_of_all_is_that_of_the_merge(tmp_path: Path) -> None:
    for model in llamas(tmp_path, "ab"):
        licence(model, "license: apache-2.0\ntags: [x]")
    front, text = card(tmp_path, {**LINEAR, "models": ["a", "b"]})
    assert front["license"] == "apache-2.0"
    assert "base_model_relation" not in front  # neither is known to be on the hub
    assert "different licences" not in text
    assert "- `a` (apache-2.0)" in text


def test_licences_that_differ_are_named_and_none_is_chosen(tmp_path: Path) -> None:
    licence(llama(tmp_path / "a"), "license: apache-2.0")
    licence(llama(tmp_path / "b"), "license: other\nlicense_name: llama3")
    llama(tmp_path / "c")
    front, text = card(tmp_path, {**LINEAR, "models": ["a", "b", "c"]})
    assert "license" not in front
    assert "under different licences: apache-2.0, llama3; of 1 it is not known." in text


def test_a_licence_of_its_own_keeps_its_name_and_address(tmp_path: Path) -> None:
    text = "license: other\nlicense_name: acme-1\nlicense_link: "
    licence(llama(tmp_path / "a"), f"{text}https://acme.example/licence")
    licence(llama(tmp_path / "b", seed=1), f"{text}LICENSE")  # a file of the model's repository
    front, card_text = card(tmp_path, {**LINEAR, "models": ["a", "b"]})
    assert front["license"] == "other"  # the hub takes its own identifiers only
    assert front["license_name"] == "acme-1"
    assert front["license_link"] == "https://acme.example/licence"
    assert "- `a` (acme-1)" in card_text
    front, _ = card(tmp_path, {**LINEAR, "models": ["b"]})
    assert front["license_name"] == "acme-1"
    assert "license_link" not in front


def test_models_of_the_hub_are_linked_with_their_relation(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    models = {"owner/a": tmp_path / "a", "owner/b": tmp_path / "b"}
    front, text = card(tmp_path, {**LINEAR, "models": list(models)}, model_dirs=models)
    assert front["base_model"] == ["owner/a", "owner/b"]
    assert front["base_model_relation"] == "merge"
    assert "[owner/a](https://huggingface.co/owner/a)" in text


def test_the_layers_are_listed_as_text(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    sources = [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": str(tmp_path / "b"), "layer_range": [3, 4]}]},
    ]
    _, text = card(tmp_path, {"merge_method": "passthrough", "slices": sources})
    assert (
        "    layers 0-2: copied\n      a layers 0-2\n    layers 3: copied\n      b layers 3" in text
    )
    assert str(tmp_path) not in text.partition("## Configuration")[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit]\n---\n", "mit"),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_front_matter_of_any_form_is_read_or_ignored(
    tmp_path: Path, text: str, found: str | None
) -> None:
    (tmp_path / "README.md").write_text(text)
    read = licence_of(LocalFolder(tmp_path))
    assert (None if read is None else str(read)) == found
    assert licence_of(LocalFolder(tmp_path / "nowhere")) is None


def test_task_and_languages_are_taken_from_the_models(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    config = {**LINEAR, "models": ["a", "b"]}
    front, _ = card(tmp_path, config)
    assert front["pipeline_tag"] == "text-generation"  # by the class
    assert "language" not in front
    licence(tmp_path / "a", "pipeline_tag: feature-extraction\nlanguage: [en, no]")
    licence(tmp_path / "b", "language: en")
    front, _ = card(tmp_path, config)
    assert front["pipeline_tag"] == "feature-extraction"
    assert front["language"] == ["en", "no"]
    licence(tmp_path / "b", "pipeline_tag: text-generation")
    front, _ = card(tmp_path, config)
    assert "pipeline_tag" not in front  # they do not agree
