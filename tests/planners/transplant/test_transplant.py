"""Whole transplants of small models, row by row against plain rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mergeloom
from mergeloom.engine.base.errors import LoomError
from tests.mergeloom.support import run
from tests.methods.transplant import oracle
from tests.planners.support import load_tensors
from tests.planners.vocabulary.models import EMBEDDING, HEAD, WIDTH, model
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, TEXTS, add, tokenizer, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a donor that share about half their tokens, under other ids and spellings."""
    folder = tmp_path_factory.mktemp("models")
    train(folder / "model", "bytes", TEXTS, SPECIAL, 400)
    add(folder / "model", "<|im_end|>", special=True)
    train(folder / "donor", "pieces", OTHER + TEXTS, ["<s>", "<unk>", "<pad>"], 330)
    add(folder / "donor", "<|eot|>", special=True)
    settings = json.loads((folder / "donor" / "tokenizer_config.json").read_text())
    settings |= {"eos_token": "<|eot|>", "chat_template": "{{ messages }}"}
    (folder / "donor" / "tokenizer_config.json").write_text(json.dumps(settings))
    model(folder / "model", 1, padding=3)
    end = tokenizer(folder / "donor").ids["<|eot|>"]
    model(folder / "donor", 2, padding=4, bos_token_id=0, eos_token_id=end)
    model(train(folder / "tied", "bytes", TEXTS, SPECIAL, 390), 3, tied=True)
    return folder


def transplant(folder: Path, out: Path, name: str = "model", **settings: Any) -> Path:
    tokenizer = {"source": "donor", "transplant": settings}
    if "pad_to_multiple_of" in settings:
        tokenizer["pad_to_multiple_of"] = settings.pop("pad_to_multiple_of")
    document = {
        "merge_method": "passthrough",
        "models": [{"model": name}],
        "tokenizer": tokenizer,
    }
    mergeloom.merge(document, out, search=[folder])
    return out


class Case:
    """The rows of a model and of the donor, by the donor's tokens."""

    def __init__(self, folder: Path, name: str = "model") -> None:
        self.own, self.donor = tokenizer(folder / name), tokenizer(folder / "donor")
        self.tensors, self.theirs = load_tensors(folder / name), load_tensors(folder / "donor")
        self.shared: dict[str, int] = {}
        for token in self.donor.ids:
            spelled = token.replace("▁", "Ġ")
            if token in self.donor.added:
                found = self.own.ids.get(token)
            elif spelled.isascii() or "Ġ" in spelled:
                found = self.own.ids.get(spelled) if spelled.replace("Ġ", "").isascii() else None
            else:
                found = None
            if found is not None:
                self.shared[token] = found
        self.shared["<|eot|>"] = self.own.ids["</s>"]

    def rows(self, table: str, tokens: list[str]) -> np.ndarray[Any, Any]:
        """The donor's."""
        numbers = [self.donor.ids[token] for token in tokens]
        rows: np.ndarray[Any, Any] = self.theirs[table][numbers].double().numpy()
        return rows


@pytest.mark.parametrize("name", ["model", "tied"])
def test_rows_by_pursuit_agree_with_the_reference(folder: Path, tmp_path: Path, name: str) -> None:
    out = transplant(folder, tmp_path / "out", name, method="omp", k=6)
    case, made = Case(folder, name), load_tensors(out)
    assert (HEAD in made) == (name == "model")
    for table in (EMBEDDING, HEAD) if name == "model" else (EMBEDDING,):
        donor_table = table if name == "model" else EMBEDDING
        own, result = case.tensors[table], made[table]
        # What is spelled otherwise than this test can tell is there too: found rows tell.
        shared = {
            token: row
            for token, number in case.donor.ids.items()
            if (row := _row_of(own, result[number])) is not None
        }
        assert case.shared.items() <= shared.items()
        tokens = sorted(shared, key=case.donor.ids.__getitem__)
        missing = [token for token in case.donor.ids if token not in shared]
        assert len(missing) > 50
        expected = oracle.pursuit(
            case.rows(donor_table, missing),
            case.rows(donor_table, tokens),
            own[[shared[token] for token in tokens]].double().numpy(),
            6,
            np.ones(len(tokens), bool),
        )
        found = result[[case.donor.ids[token] for token in missing]]
        torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    assert made["model.layers.1.mlp.up_proj.weight"].equal(
        case.tensors["model.layers.1.mlp.up_proj.weight"]
    )


def _row_of(table: torch.Tensor, row: torch.Tensor) -> int | None:
    found = (table == row).all(1).nonzero()
    return int(found[0]) if len(found) else None


def test_the_output_is_a_model_with_the_donors_tokenizer(folder: Path, tmp_path: Path) -> None:
    out = transplant(folder, tmp_path / "out", method="mean", pad_to_multiple_of=64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folder / "donor" / name).read_bytes()
    config, case = json.loads((out / "config.json").read_text()), Case(folder)
    rows = -(-len(case.donor.ids) // 64) * 64
    assert rows > len(case.donor.ids)
    assert config["vocab_size"] == rows
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, case.donor.ids["<|eot|>"])
    words = AutoTokenizer.from_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    ids = words("eleven zebras", return_tensors="pt").input_ids
    assert torch.isfinite(loaded(ids).logits).all()
    made = load_tensors(out)
    assert made[EMBEDDING].shape == (rows, WIDTH)
    own = [_row_of(case.tensors[EMBEDDING], row) for row in made[EMBEDDING]]
    mean = torch.stack([made[EMBEDDING][row] for row, it in enumerate(own) if it is not None])
    for row in (case.donor.ids["<pad>"], rows - 1):
        torch.testing.assert_close(made[EMBEDDING][row], mean.mean(0))


@pytest.mark.parametrize("how", ["mean", "sum", "weighted", "first_last"])
def test_rows_by_subword_combine_the_pieces_of_the_token(
    folder: Path, tmp_path: Path, how: str
) -> None:
    out = transplant(folder, tmp_path / "out", method="subword", subword=how)
    case, made = Case(folder), load_tensors(out)
    cut = AutoTokenizer.from_pretrained(folder / "model")
    checked = 0
    for token, number in case.donor.ids.items():
        text = token.replace("▁", " ")
        ids = cut(text, add_special_tokens=False).input_ids
        if token in case.donor.added or token.startswith("<0x") or len(ids) < 2:
            continue
        for table in (EMBEDDING, HEAD):
            rows = case.tensors[table][ids].double()
            falling = torch.arange(len(ids), 0, -1, dtype=torch.float64)
            if how == "first_last":
                expected = rows[0 if table == HEAD else -1]
            elif how == "weighted":
                weights = falling if table == HEAD else falling.flip(0)
                expected = (weights / weights.sum()) @ rows
            else:
                expected = rows.sum(0) if how == "sum" else rows.mean(0)
            found = made[table][number].double()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            checked += 1
    assert checked > 60


def test_prefixes_are_used_in_the_chosen_table_only(folder: Path, tmp_path: Path) -> None:
    out = transplant(folder, tmp_path / "out", method="zero", prefix="head")
    case, made = Case(folder), load_tensors(out)
    lacking = (made[EMBEDDING] == 0).all(1)
    checked = 0
    for token, number in case.donor.ids.items():
        spelled = token.replace("▁", "Ġ")
        beginnings = [t for t in case.own.ids if spelled.startswith(t)]
        if lacking[number] and beginnings and token.isascii() and token not in case.donor.added:
            longest = case.own.ids[max(beginnings, key=len)]
            assert made[HEAD][number].equal(case.tensors[HEAD][longest])
            checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "interpolation", "k": 5, "cosine": True, "weights": "barycentric"},
        {"method": "landmarks"},
        {"method": "random", "seed": 3},
        {"method": "omp", "k": 4, "exclude_undertrained": True},
    ],
)
def test_other_methods_are_finite_and_reproducible(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    first = load_tensors(transplant(folder, tmp_path / "1", **settings))
    again = load_tensors(transplant(folder, tmp_path / "2", **settings))
    for name, tensor in first.items():
        assert torch.isfinite(tensor).all()
        assert tensor.equal(again[name])
    zero = load_tensors(transplant(folder, tmp_path / "0", method="zero"))
    missing = (zero[EMBEDDING] == 0).all(1)
    assert first[EMBEDDING][~missing].equal(zero[EMBEDDING][~missing])
    assert first[EMBEDDING][missing].abs().sum(1).min() > 0


def test_a_dry_run_prints_the_number_of_rows_of_each_kind(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["transplant", "model", "donor", str(out), "--search-dir", str(folder), "-k", "4"]
    report = json.loads(run(*arguments, "--dry-run", "--json").stdout)
    origins = report["vocabulary"]["models"][0]["origins"]
    assert sum(origins.values()) == len(tokenizer(folder / "donor").ids)
    assert origins["role"] == 1
    assert origins["bytes"] > 10
    assert origins["made"] > 50
    assert not out.exists()
    assert "same role" in run(*arguments, "--dry-run").stdout
    run(*arguments)
    case, made = Case(folder), load_tensors(out)
    zero = (made[EMBEDDING] == 0).all(1)
    assert not zero.any()
    own = {
        number
        for number, row in enumerate(made[EMBEDDING])
        if _row_of(case.tensors[EMBEDDING], row) is not None
    }
    assert len(own) == len(case.donor.ids) - origins["made"]
    again = run("plan", str(out / "mergeloom_config.yml"), "--search-dir", str(folder), "--json")
    assert json.loads(again.stdout)["vocabulary"] == report["vocabulary"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "opm"}, "did you mean 'omp'"),
        ({"k": 0}, "'k' must be 1 or more"),
        ({"prefix": "often"}, "embed, head, no, yes"),
        ({"cosine": 1}, "'cosine' must be true or false"),
    ],
)
def test_invalid_settings_are_refused(
    folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(LoomError, match=words):
        transplant(folder, tmp_path / "out", **settings)


def test_a_transplant_needs_a_donor(folder: Path) -> None:
    document = {
        "merge_method": "passthrough",
        "models": [{"model": "model"}],
        "tokenizer": {"transplant": "omp"},
    }
    with pytest.raises(LoomError, match="needs a donor"):
        mergeloom.plan(document, search=[folder])


@pytest.mark.parametrize("source", ["union", "base", "donor"])
def test_different_splitting_rules_are_warned_about(folder: Path, source: str) -> None:
    document = {
        "merge_method": "linear",
        "models": [{"model": "model"}, {"model": "donor"}],
        "parameters": {"weight": 1.0},
        "tokenizer_source": source,
    }
    found = mergeloom.plan(document, search=[folder])
    said = "\n".join(map(str, found.findings))
    assert "differ in normaliser, pre-tokenizer: their tokens are matched by spelling" in said
