"""Merges of models with different vocabularies, token by token against the rules written out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import mergeloom
from tests.mergeloom.support import merge_without_torch
from tests.planners.support import load_tensors, plan_text, write_checkpoint
from tests.planners.vocabulary.models import (
    EMBEDDING,
    HEAD,
    WEIGHTS,
    WIDTH,
    Loaded,
    Row,
    check,
    merge,
    model,
    usual,
)


@pytest.mark.parametrize("base", [None, "a", "b"])
def test_rows_of_a_union_come_from_the_right_tokens(folder: Path, base: str | None) -> None:
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer_source: union", base)
    ids = check(folder, out, usual(models, base))
    assert set(ids) == set().union(*(m.ids for m in models.values()))
    first = models[base or "a"].ids
    assert {token: ids[token] for token in first} == first


@pytest.mark.parametrize(
    ("settings", "base", "tokens"),
    [
        ("tokenizer_source: base", None, "a"),
        ("tokenizer: {source: base}", "b", "b"),
        ("tokenizer: {source: c}", None, "c"),
        ("tokenizer_source: model:c", "a", "c"),
    ],
)
def test_rows_follow_the_tokenizer_of_the_chosen_model(
    folder: Path, settings: str, base: str | None, tokens: str
) -> None:
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, settings, base)
    assert check(folder, out, usual(models, base)) == models[tokens].ids
    before = (folder / tokens / "tokenizer.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("base", [None, "b"])
def test_without_settings_rows_of_different_sizes_are_matched_by_token(
    folder: Path, base: str | None
) -> None:
    """The output has the tokenizer of the base or first model, as it always has without them."""
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "", base)
    assert check(folder, out, usual(models, base)) == models[base or "a"].ids
    plan = mergeloom.plan(folder / "config.yml", search=[folder])
    said = next(each for each in map(str, plan.warnings) if "differ in size" in each)
    assert f"the tokenizer of '{base or 'a'}'" in said
    assert "'{source: union}' keeps the tokens of all" in said


def test_padding_rows_are_means_and_need_no_torch(folder: Path) -> None:
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer: {source: union, pad_to_multiple_of: 64}")
    ids = len(AutoTokenizer.from_pretrained(out))
    check(folder, out, usual(models, None), padding=-ids % 64)
    merge_without_torch(folder / "config.yml", folder / "again")
    assert (folder / "again" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_rows_named_by_the_configuration_are_used(folder: Path) -> None:
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(
        folder,
        """
tokenizer:
  source: base
  tokens:
    <|im_start|>: {source: b}
    <|im_end|>: {source: {kind: model_token, model: a, token: </s>}}
    <|zero|>: {source: {kind: zero}}
    <s>: {source: c, force: true}
    <|new|>: {source: {kind: model_token, model: c, token_id: 7}, force: true}
""",
        "a",
    )
    rule = usual(models, "a")

    def row(name: str, table: str, token: str) -> Row:
        own = models[name].row(table, token)
        lent = {
            "<|im_start|>": own if own is not None else models["b"].row(table, "<|im_start|>"),
            "<|im_end|>": own if own is not None else models["a"].row(table, "</s>"),
            "<|zero|>": torch.zeros(WIDTH),
            "<s>": models["c"].row(table, "<s>"),
            "<|new|>": models["c"].tensors[table][7],
        }
        found = lent[token] if token in lent else rule(name, table, token)
        assert found is not None
        return found

    ids = check(folder, out, row)
    assert len(ids) == len(models["a"].ids) + 4
    after = AutoTokenizer.from_pretrained(out)
    assert after("<|new|>", add_special_tokens=False)["input_ids"] == [ids["<|new|>"]]


def test_task_vectors_of_borrowed_rows_are_zero(folder: Path) -> None:
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer_source: union", "a", "task_arithmetic")
    ids, tensors = AutoTokenizer.from_pretrained(out).get_vocab(), load_tensors(out)
    rule = usual(models, "a")
    for token in ("<s>", "<|im_start|>", "<|im_end|>", "<pad>"):
        for table in (EMBEDDING, HEAD):
            base = rule("a", table, token)
            expected = base + sum(
                weight * (rule(name, table, token) - base)
                for name, weight in WEIGHTS.items()
                if name != "a"
            )
            torch.testing.assert_close(tensors[table][ids[token]], expected)


def test_rows_of_no_token_are_left_out(folder: Path) -> None:
    shutil.rmtree(folder / "c")
    shutil.copytree(folder / "b", folder / "c")
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    model(folder / "a", 4, padding=5)
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer_source: base")
    assert check(folder, out, usual(models, None)) == models["b"].ids


def test_a_tied_model_lends_its_head(folder: Path) -> None:
    model(folder / "b", 5, tied=True)
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer_source: union", "b")
    check(folder, out, usual(models, "b"))


def test_a_union_of_tied_models_is_tied(folder: Path) -> None:
    for seed, name in enumerate(WEIGHTS):
        (folder / name / "model.safetensors").unlink()
        model(folder / name, seed, tied=True)
    out = merge(folder, "tokenizer_source: union")
    assert HEAD not in load_tensors(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_token_ids_of_the_configuration_follow_the_tokenizer(folder: Path) -> None:
    ids = Loaded(folder / "b").ids
    model(folder / "b", 2, eos_token_id=ids["<|im_end|>"])
    generation = {"eos_token_id": [ids["<|im_end|>"]], "pad_token_id": 0, "temperature": 0.5}
    (folder / "b" / "generation_config.json").write_text(json.dumps(generation))
    own = {"eos_token_id": 2, "temperature": 0.7}
    (folder / "a" / "generation_config.json").write_text(json.dumps(own))
    out = merge(folder, "tokenizer_source: b", "a")
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == ids["<|im_end|>"]
    assert json.loads((out / "generation_config.json").read_text()) == {
        **generation,
        "temperature": 0.7,
    }


def test_the_chosen_chat_template_is_written(folder: Path) -> None:
    out = merge(folder, "chat_template: chatml\ntokenizer_source: union")
    after = AutoTokenizer.from_pretrained(out)
    talk = [{"role": "user", "content": "Hi"}]
    text = after.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_bias_of_the_head_is_rearranged(folder: Path) -> None:
    for seed, name in enumerate(WEIGHTS):
        tensors = load_tensors(folder / name)
        rows = len(tensors[HEAD])
        tensors["lm_head.bias"] = torch.arange(float(rows)) + 100 * seed
        tensors["model.final_logits_bias"] = torch.arange(float(rows)).view(1, rows)
        config = json.loads((folder / name / "config.json").read_text())
        write_checkpoint(folder / name, tensors, config)
    models = {name: Loaded(folder / name) for name in WEIGHTS}
    out = merge(folder, "tokenizer: {source: union, pad_to_multiple_of: 8}")
    ids, tensors = AutoTokenizer.from_pretrained(out).get_vocab(), load_tensors(out)
    rows = -(-len(ids) // 8) * 8
    assert tensors["lm_head.bias"].shape == (rows,)
    assert tensors["model.final_logits_bias"].shape == (1, rows)
    total = sum(WEIGHTS.values())
    for token in ("<s>", "<|im_start|>", "<|im_end|>"):
        owners = {n: m.ids[token] for n, m in models.items() if token in m.ids}
        mean = sum(owners.values()) / len(owners)
        expected = sum(w * owners.get(n, mean) for n, w in WEIGHTS.items()) / total
        found = tensors["model.final_logits_bias"][0, ids[token]]
        torch.testing.assert_close(found, torch.tensor(expected))


def test_a_stage_has_the_tokenizer_of_its_merge(folder: Path) -> None:
    text = """
name: first
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
tokenizer_source: union
---
merge_method: linear
models: [{model: first}, {model: c}]
parameters: {weight: 1}
tokenizer_source: union
dtype: float32
"""
    (folder / "config.yml").write_text(text)
    mergeloom.merge(folder / "config.yml", folder / "out", search=[folder])
    a, b, c = (Loaded(folder / name) for name in "abc")
    ids = AutoTokenizer.from_pretrained(folder / "out").get_vocab()
    assert set(ids) == {*a.ids, *b.ids, *c.ids}
    rows = load_tensors(folder / "out")[EMBEDDING]
    for token, number in ids.items():
        own = [r for m in (a, b) if (r := m.row(EMBEDDING, token)) is not None]
        first = torch.stack(own).mean(0) if own else None
        found = [r for r in (first, c.row(EMBEDDING, token)) if r is not None]
        torch.testing.assert_close(rows[number], torch.stack(found).mean(0))


FIRST = """merge_method: ties
base_model: a
models: [{model: a}, {model: b, parameters: {weight: 1, density: 0.5}}]
"""


@pytest.mark.parametrize("method", [FIRST, FIRST.replace("ties", "dare_ties")])
@pytest.mark.parametrize("own", ["base", "union"])
def test_rows_of_a_stage_are_those_of_the_stage_by_itself(
    folder: Path, method: str, own: str
) -> None:
    """A method that looks at whole tensors, and a later document with another vocabulary."""
    first = f"{method}tokenizer_source: {own}\n"
    second = (
        "merge_method: slerp\nbase_model: c\nmodels: [c, first]\nparameters: {t: 0.4}\n"
        "tokenizer: {source: union, pad_to_multiple_of: 8}\ndtype: float32\n"
    )
    config = folder / "config.yml"
    config.write_text(f"name: first\n{first}---\n{second}")
    mergeloom.merge(config, folder / "out", search=[folder])
    plan = plan_text(config.read_text(), folder)
    tables = [spill.name for spill in plan.graph.spills]
    assert tables == [EMBEDDING, HEAD]
    config.write_text(f"{first}dtype: float32\n")
    mergeloom.merge(config, folder / "first", search=[folder])
    config.write_text(second)
    mergeloom.merge(config, folder / "apart", search=[folder])
    found, expected = load_tensors(folder / "out"), load_tensors(folder / "apart")
    assert len(found[EMBEDDING]) != len(load_tensors(folder / "first")[EMBEDDING])
    assert {name: tensor.numpy().tobytes() for name, tensor in found.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in expected.items()
    }
