"""Three small models with tokenizers of their own, and merges of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mergeloom
from tests.planners.support import llama_names, load_tensors, write_checkpoint
from tests.planners.vocabulary.tokenizers import tokenizer

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
