"""Merges of models with different vocabularies, token by token against the rules written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mergeloom
from mergeloom.engine.base.errors import LoomError
from mergeloom.planners.vocabulary.find import token_number
from tests.mergeloom.support import merge_without_torch, run
from tests.planners.support import llama_names, load_tensors, plan_text, write_checkpoint
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, TEXTS, add, tokenizer, train

WIDTH = 8
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS = {"a": 0.5, "b": 0.75, "c": 1.0}

Row = torch.Tensor
Models = Mapping[str, "Loaded"]


class Loaded:
    """A model's tokens and tables as they lie on disk."""

    def __init__(self, directory: Path) -> None:
        self.ids = dict(AutoTokenizer.from_pretrained(directory).get_vocab())
        self.tensors = load_tensors(directory)

    def row(self, table: str, token: str) -> Row | None:
        rows = self.tensors.get(table, self.tensors[EMBEDDING])
        number = self.ids.get(token)
        return rows[number] if number is not None and number < len(rows) else None


def model(directory: Path, seed: int, padding: int = 0, tied: bool = False, **config: Any) -> Path:
    """Weights for the tokenizer in ``directory``, with ``padding`` rows more than tokens."""
    rows = len(tokenizer(directory).ids) + padding
    names = [name for name in llama_names(2) if not (tied and name == HEAD)]
    shapes = {
        "model.embed_tokens.weight": (rows, WIDTH),
        "lm_head.weight": (rows, WIDTH),
        "mlp.down_proj.weight": (WIDTH, 16),
        "mlp.gate_proj.weight": (16, WIDTH),
        "mlp.up_proj.weight": (16, WIDTH),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        shape = next((s for end, s in shapes.items() if name.endswith(end)), (WIDTH, WIDTH))
        shape = (WIDTH,) if "norm" in name else shape
        tensors[name] = torch.randn(shape, generator=generator)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    return write_checkpoint(directory, tensors, settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: tokens that all have, that two have, that one has; ids and rows that differ."""
    folder = tmp_path_factory.mktemp("models")
    train(folder / "a", "bytes", TEXTS, SPECIAL, 400)
    train(folder / "b", "bytes", OTHER + TEXTS[:1], SPECIAL, 340)
    add(folder / "b", "<|im_start|>", special=True)
    add(folder / "b", "<|im_end|>", special=True)
    train(folder / "c", "bytes", TEXTS[1:] + OTHER, [*SPECIAL, "<pad>"], 380)
    add(folder / "c", "<|im_end|>", special=True)
    model(folder / "a", 1)
    model(folder / "b", 2, padding=5)
    model(folder / "c", 3)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "models")
    return tmp_path / "models"


def merge(folder: Path, settings: str, base: str | None = None, method: str = "linear") -> Path:
    listed = "".join(
        f"  - {{model: {name}, parameters: {{weight: {weight}}}}}\n"
        for name, weight in WEIGHTS.items()
        if method == "linear" or name != base
    )
    head = f"base_model: {base}\n" if base else ""
    text = f"merge_method: {method}\n{head}models:\n{listed}dtype: float32\n{settings}\n"
    config = folder / "config.yml"
    config.write_text(text)
    out = folder / "out"
    mergeloom.merge(config, out, search=[folder])
    return out


def usual(models: Models, base: str | None) -> Callable[[str, str, str], Row]:
    """The rule for a token that model ``name`` may lack."""

    def row(name: str, table: str, token: str) -> Row:
        found = {n: r for n, m in models.items() if (r := m.row(table, token)) is not None}
        if name in found:
            return found[name]
        if base in found:
            return found[base]
        return torch.stack(list(found.values())).mean(0) if found else torch.zeros(WIDTH)

    return row


def check(
    folder: Path, out: Path, row: Callable[[str, str, str], Row], padding: int = 0
) -> Mapping[str, int]:
    """Compare every row of the output with the weighted mean of what ``row`` says; its ids."""
    ids: Mapping[str, int] = AutoTokenizer.from_pretrained(out).get_vocab()
    tensors = load_tensors(out)
    total = sum(WEIGHTS.values())
    config = json.loads((out / "config.json").read_text())
    for table in (EMBEDDING, HEAD):
        assert tensors[table].shape == (len(ids) + padding, WIDTH)
        expected = torch.zeros(len(ids), WIDTH)
        for name, weight in WEIGHTS.items():
            tokens = sorted(ids, key=ids.__getitem__)
            expected += weight / total * torch.stack([row(name, table, t) for t in tokens])
        torch.testing.assert_close(tensors[table][: len(ids)], expected)
        means = expected.mean(0).expand(padding, WIDTH)
        torch.testing.assert_close(tensors[table][len(ids) :], means)
    assert config["vocab_size"] == len(ids) + padding
    assert all(torch.isfinite(t).all() for t in tensors.values())
    loaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.get_input_embeddings().weight.shape[0] == len(ids) + padding
    return ids


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("tokenizer_source: unoin", "did you mean 'union'"),
        ("tokenizer_source: no/such", "not 'union', 'base' or the name of a model"),
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
