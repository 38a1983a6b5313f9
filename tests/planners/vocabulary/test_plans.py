"""What a plan says of vocabularies, and tokenizer settings that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mergeloom.engine.base.errors import LoomError
from mergeloom.planners.vocabulary.find import token_number
from tests.mergeloom.support import run
from tests.planners.support import plan_text
from tests.planners.vocabulary.models import WEIGHTS, Loaded, merge


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("tokenizer_source: unoin", "did you mean 'union'"),
        ("tokenizer_source: no/such", "'no/such' is not a directory"),
        ("tokenizer: {tokens: {x: {source: d}}}", "'d' is not a model of this merge"),
        ("tokenizer: {tokens: {no-such: {source: a}}}", "'a' has no token 'no-such'"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: 9999}}}}",
            "has no row for id 9999",
        ),
        ("chat_template: chatmll\ntokenizer: {}", "did you mean 'chatml'"),
    ],
)
def test_invalid_tokenizer_settings_are_refused(folder: Path, settings: str, words: str) -> None:
    text = f"merge_method: linear\nmodels: [a, b]\nparameters: {{weight: 1}}\n{settings}\n"
    with pytest.raises(LoomError, match=words):
        plan_text(text, folder)


def test_a_first_model_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "a" / "tokenizer.json").unlink()
    text = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\ntokenizer: {}\n"
    with pytest.raises(LoomError, match="the first model 'a' has no tokenizer"):
        plan_text(text, folder)


def test_the_plan_counts_rows_by_origin(folder: Path) -> None:
    text = (
        "merge_method: linear\nmodels: [a, b, c]\nparameters: {weight: 1}\n"
        "tokenizer: {pad_to_multiple_of: 32, tokens: {<|z|>: {source: {kind: zero}}}}\n"
    )
    plan = plan_text(text, folder)
    found = plan.vocabulary
    assert found is not None
    ids = {name: Loaded(folder / name).ids for name in WEIGHTS}
    everything = set().union(*ids.values())
    assert found.tokens == len(everything) + 1
    assert found.rows % 32 == 0
    assert (found.source, found.added) == ("a", found.tokens - len(ids["a"]))
    for model_rows, (name, own) in zip(found.models, ids.items(), strict=True):
        assert model_rows.model == name
        assert model_rows.origins["own"] == len(own)
        assert model_rows.origins["zero"] == 1
        assert model_rows.origins["padding"] == found.rows - found.tokens
        assert sum(model_rows.origins.values()) == found.rows
        assert model_rows.unused == (5 if name == "b" else 0)


def test_the_plan_tells_the_origin_of_a_token(folder: Path) -> None:
    text = "merge_method: linear\nmodels: [a, b, c]\nparameters: {weight: 1}\ntokenizer: {}\n"
    plan = plan_text(text, folder)
    ids = {name: Loaded(folder / name).ids for name in WEIGHTS}
    assert plan.vocabulary is not None
    number = token_number(plan.side_files, plan.vocabulary, "<|im_end|>")
    out = merge(folder, "tokenizer: {}")
    assert number == AutoTokenizer.from_pretrained(out).get_vocab()["<|im_end|>"]
    a, b, c = plan.vocabulary.origins(number)
    lent = (("b", ids["b"]["<|im_end|>"]), ("c", ids["c"]["<|im_end|>"]))
    assert (a.model, a.origin, a.rows) == ("a", "mean", lent)
    assert (b.origin, b.rows) == ("own", lent[:1])
    assert (c.origin, c.rows) == ("own", lent[1:])
    with pytest.raises(LoomError, match=r"no token '<\|im_stop\|>': did you mean '<\|im_start\|>'"):
        token_number(plan.side_files, plan.vocabulary, "<|im_stop|>")
    with pytest.raises(LoomError, match="no tokenizer settings"):
        token_number((), None, "x")


@pytest.mark.parametrize(
    "document",
    [
        {"model": {"vocab": {"x": 10**9, "y": 0}}},
        {"model": {"vocab": [["x"], ["y", 0.5]], "type": "Unigram"}},
        {"model": {"vocab": {"x": "1"}}},
        {"model": [], "added_tokens": []},
        {"model": {"vocab": {"x": 0}}, "added_tokens": [{"id": -1, "content": "y"}]},
    ],
)
def test_invalid_tokenizers_are_refused(folder: Path, document: dict[str, Any]) -> None:
    (folder / "b" / "tokenizer.json").write_text(json.dumps(document))
    text = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\ntokenizer: {source: b}\n"
    with pytest.raises(LoomError):
        plan_text(text, folder)


def test_an_invalid_padding_is_refused(folder: Path) -> None:
    text = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
    with pytest.raises(LoomError, match="far too many"):
        plan_text(text + "tokenizer: {pad_to_multiple_of: 1000000000000}", folder)


def test_plan_and_explain_report_the_vocabulary(folder: Path) -> None:
    text = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\ntokenizer: {}\n"
    (folder / "config.yml").write_text(text)
    options = (folder / "config.yml", "--search-dir", folder)
    shown = run("plan", *options).stdout
    assert "tokenizer of 'a', " in shown
    assert "only owner's" in shown
    found = json.loads(run("plan", *options, "--json").stdout)["vocabulary"]
    assert found["tokens"] == found["rows"] == sum(found["models"][0]["origins"].values())
    token = json.loads(run("explain", *options, "--token", "<|im_start|>", "--json").stdout)[
        "token"
    ]
    row = Loaded(folder / "b").ids["<|im_start|>"]
    assert token["models"][0] == {
        "model": "a",
        "origin": "only",
        "words": "the only model's that has the token",
        "rows": [{"model": "b", "row": row}],
    }
    assert f"row {row} of b" in run("explain", *options, "--token", "<|im_start|>").stdout
