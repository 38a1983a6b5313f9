"""Checkpoints and settings that no merge can use are refused with what to do instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.models.pipeline import pipeline_files
from tests.planners.support import llama, load_tensors, plan_text, write_checkpoint
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, train

COPY = "models: [a]\nmerge_method: passthrough\n"


def with_tensor(folder: Path, name: str) -> None:
    """A model with one more tensor."""
    llama(folder)
    config = json.loads((folder / "config.json").read_text())
    write_checkpoint(folder, {**load_tensors(folder), name: torch.ones(8)}, config)


def indexed(folder: Path, shard: str) -> None:
    llama(folder)
    (folder / "model.safetensors").rename(folder / shard)
    index = {"weight_map": dict.fromkeys(["model.norm.weight"], shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def empty(folder: Path) -> None:
    llama(folder)
    save_file({}, folder / "model.safetensors")


def pair(root: Path, texts: list[str]) -> None:
    """A model, and a donor with a tokenizer of other texts."""
    for name, words in (("a", ["a b c d e f g"]), ("donor", texts)):
        train(root / name, "words", words, SPECIAL if name == "donor" else [], 64)
        llama(root / name, vocabulary=64)


TRANSPLANT = COPY + "tokenizer: {source: donor, transplant: %s}"

REFUSED: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "no tensors": (lambda root: empty(root / "a"), COPY, "a' has no tensors", "copy or download"),
    "an array file as shard": (
        lambda root: indexed(root / "a", "model.npz"),
        COPY,
        "a/model.npz' is in no known weight format",
        "names of files of weights end in .safetensors, .bin, .pt, .pth, .ckpt",
    ),
    "a tensor that the base lacks": (
        lambda root: (llama(root / "base"), *(with_tensor(root / n, "extra") for n in "ab")),
        "models: [a, b]\nbase_model: base\nmerge_method: model_stock\n",
        "'extra' is in 2 models, but not in the base model 'base', which 'model_stock' needs",
        "name a base model that has it, or merge by a method without base",
    ),
    "a shallow base": (
        lambda root: (llama(root / "a"), llama(root / "b"), llama(root / "c", layers=2)),
        "slices: [{sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]}]\n"
        "base_model: c\nmerge_method: task_arithmetic\nparameters: {weight: 1}\n",
        "the base model 'c' has 2 layers, the sources take [0, 4]",
        "add it as a source with the layer_range that is its part",
    ),
    "no embedding": (
        lambda root: write_checkpoint(
            root / "a",
            ["encoder.layers.0.attn.weight", "encoder.layers.1.attn.weight"],
            {"model_type": "other", "num_hidden_layers": 2},
        ),
        COPY + "tokenizer_source: base\n",
        "no model of this merge has an embedding of tokens",
        "leave these settings out",
    ),
    "a template in another encoding": (
        lambda root: (
            pair(root, OTHER),
            (root / "chat.jinja").write_bytes(b"\xff\xfea"),
        ),
        COPY + "chat_template: chat.jinja\n",
        "cannot read the chat template 'chat.jinja': it is not UTF-8 text",
        "save it as UTF-8",
    ),
    "a tokenizer that is no tokenizer": (
        lambda root: (
            pair(root, OTHER),
            (root / "a" / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}'),
        ),
        TRANSPLANT % "subword",
        "a' cannot be used: ",
        "choose another method than 'subword'",
    ),
    "nothing in common": (
        lambda root: pair(root, ["xyzzy zyx"]),
        TRANSPLANT % "omp",
        "a' shares no token with that of the donor, so rows cannot be compared",
        "choose the method subword, mean, zero or random",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_says_what_to_do(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, text, cause, remedy = REFUSED[kind]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoomError) as caught:
        plan_text(text, tmp_path)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MAX_FILES", 1, "has more than 1 files beside its weights.*: remove files"),
        ("MAX_FILE_BYTES", 50, "readme.md' has more than 0 MiB and is in no known .*: remove it"),
    ],
)
def test_a_pipeline_with_what_does_not_belong_there_is_refused(
    limit: str, value: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "readme.md").write_text("text" * 20)
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    assert [each.name for each in pipeline_files(LocalFolder(tmp_path))] == [
        "model_index.json",
        "unet/readme.md",
    ]
    monkeypatch.setattr(f"mergeloom.planners.models.pipeline.{limit}", value)
    with pytest.raises(LoomError, match=words):
        pipeline_files(LocalFolder(tmp_path))
