"""What is said where embeddings are merged by number and tokenizers do not agree on the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.planners.support import llamas, plan_text

MERGE = "models: [{model: a}, {model: b}]\nparameters: {weight: 1}\nmerge_method: linear\n"
REMEDY = "write 'tokenizer: {source: union}' to merge rows by token"


def tokenizer(
    directory: Path, tokens: list[str], added: Sequence[str] = (), **more: object
) -> None:
    ids = {token: number for number, token in enumerate(tokens)}
    extra = [{"id": len(tokens) + i, "content": token} for i, token in enumerate(added)]
    document = {"model": {"type": "BPE", "vocab": ids}, "added_tokens": extra, **more}
    (directory / "tokenizer.json").write_text(json.dumps(document))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, model in enumerate(llamas(tmp_path, "ab", vocabulary=4)):
        tokenizer(model, ["x", "y", "z"], padding={"length": number})
    return tmp_path


def warnings(models: Path, text: str = MERGE) -> tuple[str, ...]:
    return plan_text(text, models).warnings


def test_equal_tokenizers_cause_no_warning(models: Path) -> None:
    assert not warnings(models)


def test_tokens_without_a_row_are_warned_about(models: Path) -> None:
    for name in "ab":
        tokenizer(models / name, ["x", "y", "z"], ["<s>", "<pad>", "</s>"])
    assert warnings(models) == tuple(
        f"2 tokens of '{name}' have no row in its embedding, which has 4 rows: "
        "the id of '<pad>' is 4"
        for name in "ab"
    )


def test_ids_of_different_tokens_are_warned_about(models: Path) -> None:
    tokenizer(models / "b", ["y", "x", "z"])
    assert warnings(models) == (
        "2 ids mean different tokens in 'a' and 'b' (0 is 'x' and 'y'), but rows are "
        f"matched by id: {REMEDY}",
    )


def test_tokens_that_a_model_lacks_are_warned_about(models: Path) -> None:
    tokenizer(models / "b", ["x", "y", "z"], ["<|im_end|>"])
    said = "that 'a' lacks ('<|im_end|>', id 3), so their rows are matched with unused rows"
    assert warnings(models) == (f"'b' has 1 token {said}: {REMEDY}",)


def test_a_first_model_without_a_tokenizer_is_warned_about(models: Path) -> None:
    (models / "a" / "tokenizer.json").unlink()
    assert warnings(models) == (
        "'a' has no tokenizer, so the output will have none: write 'tokenizer_source: b' to use "
        "that of 'b'",
    )
    (models / "b" / "tokenizer.json").unlink()
    assert not warnings(models)


def test_an_unreadable_tokenizer_is_warned_about(models: Path) -> None:
    (models / "b" / "tokenizer.json").write_text("[]")
    (found,) = warnings(models)
    assert found.startswith("the tokenizer of 'b' cannot be compared with the others: '")


def test_tokenizers_of_a_stack_are_compared_too(models: Path) -> None:
    tokenizer(models / "b", ["y", "x", "z"])
    text = """
    merge_method: passthrough
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
      - sources: [{model: b, layer_range: [2, 4]}]
    """
    assert len(warnings(models, text)) == 1


def test_tokenizers_of_models_whose_rows_are_not_used_are_not_compared(models: Path) -> None:
    tokenizer(models / "b", ["y", "x", "z"])
    text = """
    merge_method: passthrough
    slices:
      - sources: [{model: a, layer_range: [0, 1]}]
      - sources: [{model: b, layer_range: [1, 2]}]
      - sources: [{model: a, layer_range: [2, 4]}]
    """
    assert not warnings(models, text)


def test_the_remedy_of_a_warning_is_apart_from_its_cause(models: Path) -> None:
    tokenizer(models / "b", ["y", "x", "z"])
    (found,) = plan_text(MERGE, models).findings
    assert (found.remedy, found.code) == (REMEDY, "vocabulary")
    assert REMEDY not in found.cause
