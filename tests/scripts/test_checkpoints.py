"""Generated checkpoints: exact sizes, deterministic values, models that load and generate."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.safetensors import read_header
from scripts.checkpoints import main, make, parameters
from scripts.shapes import SHAPES, tensors


def weights(directory: Path) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        result |= load_file(path)
    return result


def test_shapes_have_the_parameters_of_their_models():
    assert parameters("1b") == 1_235_814_400
    assert parameters("3b") == 3_212_749_824
    assert parameters("7b") == 7_241_732_096
    assert parameters("7b", layers=48) == 10_731_524_096
    assert parameters("7b", layers=24) == 5_496_836_096
    assert parameters("70b") == 70_553_706_496
    assert len(tensors(SHAPES["moe60k"])) >= 60_000
    assert 640e6 < 2 * parameters("demo") < 700e6


@pytest.mark.parametrize("name", ["tiny", "moe", "encoder"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_transformers_loads_and_generates(tmp_path, name, dtype):
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    make(tmp_path, name, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer("The layers of the model, merged: ünïcode", return_tensors="pt")
    assert tokens["input_ids"][0, 0] == 1
    if name == "encoder":
        model, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert torch.isfinite(model(input_ids=tokens["input_ids"]).pooler_output).all()
    else:
        model, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        ids = model.generate(tokens["input_ids"], max_new_tokens=4, min_new_tokens=4)
        assert ids.shape[1] == tokens["input_ids"].shape[1] + 4
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert next(model.parameters()).dtype == {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]


def test_tokenizer_returns_what_it_was_given_and_renders_chats(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path, "tiny"))
    text = "The merge of the layers\nis  it, ünïcode 42 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < len(text.encode())
    assert max(tokenizer.get_vocab().values()) < SHAPES["tiny"].vocab
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"


def test_same_values_however_files_are_cut(tmp_path):
    whole = weights(make(tmp_path / "whole", "tiny"))
    cut = make(tmp_path / "cut", "tiny", max_shard_bytes=20_000)
    assert len(list(cut.glob("model-*.safetensors"))) > 2
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    for name, file in index["weight_map"].items():
        assert name in read_header(cut / file).entries
    again = weights(cut)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("compressible", [False, True])
def test_values_are_normal_with_the_stated_deviation(tmp_path, compressible):
    made = weights(make(tmp_path, "moe", dtype="f32", compressible=compressible))
    for tensor in tensors(SHAPES["moe"]):
        values = made[tensor.name]
        assert values.shape == tensor.shape
        assert torch.isfinite(values).all()
        assert values.mean() == pytest.approx(tensor.mean, abs=0.25 * tensor.std)
        assert values.std() == pytest.approx(tensor.std, rel=0.3)


def test_seeds_and_dtypes(tmp_path):
    base = weights(make(tmp_path / "base", "tiny", dtype="f32"))
    other = weights(make(tmp_path / "other", "tiny", dtype="f32", seed=1))
    half = weights(make(tmp_path / "half", "tiny"))
    name = "model.layers.2.mlp.up_proj.weight"
    assert not torch.equal(base[name], other[name])
    assert all(torch.equal(base[key].bfloat16(), half[key]) for key in base)
    assert not torch.equal(base[name], base[name.replace("2", "1")])


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_finetune_changes_most_elements_a_little(tmp_path, dtype):
    base = weights(make(tmp_path / "base", "moe", dtype=dtype))
    tunes = [
        weights(make(tmp_path / str(seed), "moe", dtype=dtype, seed=seed, finetune_of=0))
        for seed in (1, 2)
    ]
    for name, values in base.items():
        if values.numel() < 4096:
            continue
        deltas = [(tune[name].float() - values.float()).numpy() for tune in tunes]
        for delta in deltas:
            assert 0.6 < np.count_nonzero(delta) / delta.size < 0.95
            assert 0.01 < delta.std() / values.float().std() < 0.03
        assert abs(np.corrcoef(deltas[0].ravel(), deltas[1].ravel())[0, 1]) < 0.1


def test_sparse_files_have_right_headers_and_no_data(tmp_path):
    directory = make(tmp_path, "1b", sparse=True)
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) == 2
    total = sum(sum(e.stop - e.start for e in read_header(f).entries.values()) for f in files)
    assert total == 2 * parameters("1b")
    assert sum(file.stat().st_blocks for file in files) * 512 < 1 << 20


def test_ties_and_layers(tmp_path):
    assert "lm_head.weight" in weights(make(tmp_path / "own", "tiny", layers=2))
    tied = make(tmp_path / "tied", "tiny", tied=True, layers=3)
    made = weights(tied)
    assert "lm_head.weight" not in made
    assert "model.layers.2.input_layernorm.weight" in made
    assert "model.layers.3.input_layernorm.weight" not in made
    config = json.loads((tied / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["num_hidden_layers"] == 3


def test_command(tmp_path, capsys):
    target = str(tmp_path / "made")
    assert main(["tiny", target, "--max-shard-size", "50KB", "--untied"]) == 0
    assert main(["tiny", target]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["tiny", target, "--force", "--tied"]) == 0
    assert [path.name for path in Path(target).glob("*.safetensors*")] == ["model.safetensors"]
    assert main(["tiny", str(tmp_path / "b"), "--layers", "0"]) == 1
    assert capsys.readouterr().err == "make_checkpoint: a model needs at least one layer\n"
