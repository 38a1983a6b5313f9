"""Models exported to GGUF: transformers and llama.cpp load them, and what is read back is equal."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import AutoModelForCausalLM

from mergeloom import Observer, export, merge
from mergeloom.engine.base.errors import CheckpointError, LoomError, OutputError
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.gguf import StringArray, read_gguf
from tests.planners.models.gguf.files import FAMILIES, MIXTURES, Kind, tensors_of
from tests.planners.models.gguf.test_smollm2 import copy_of
from tests.planners.models.gguf.test_smollm2 import real as real  # noqa: PLC0414  # a fixture


def saved(kind: Kind, directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = kind.model().to(dtype)
    model.save_pretrained(directory)
    return model


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def told(path: Path) -> dict[str, Any]:
    """Everything that a file says, arrays of strings as tuples."""
    values = read_gguf(FileSource.at(path)).values
    return {k: v.values if isinstance(v, StringArray) else v for k, v in values.items()}


@pytest.mark.parametrize("name", [*FAMILIES, *MIXTURES])
def test_a_file_agrees_with_the_gguf_package(name: str, tmp_path: Path) -> None:
    kind = {**FAMILIES, **MIXTURES}[name]
    model = saved(kind, tmp_path / "in")
    report = export(tmp_path / "in", tmp_path / "out.gguf", type="f32")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    expected = tensors_of(kind, model)
    assert found.keys() == expected.keys()
    for called, values in expected.items():
        np.testing.assert_array_equal(found[called].data, values, err_msg=called)
    assert report.tensors == len(expected)
    assert report.bytes == (tmp_path / "out.gguf").stat().st_size
    assert not (tmp_path / "out.gguf.partial").exists()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma2", "gemma3"])
def test_transformers_loads_an_exported_file(name: str, tmp_path: Path) -> None:
    """Its reader does not know gemma, nor of llama's biases, qwen3's heads, phi3's padding."""
    model = saved(FAMILIES[name], tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out.gguf", type="f32")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="out.gguf", dtype=torch.float32, output_loading_info=True
    )
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    for key, values in model.state_dict().items():
        expected = loaded.state_dict()[key]
        torch.testing.assert_close(values, expected, rtol=0, atol=2e-7, msg=key)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_a_round_trip_keeps_values(kind: str, tmp_path: Path) -> None:
    model = saved(FAMILIES["qwen3"], tmp_path / "in", torch.bfloat16)
    export(tmp_path / "in", tmp_path / "out.gguf", type=kind)
    merge({"dtype": "float32", **copy_of(tmp_path / "out.gguf")}, tmp_path / "back")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    for name, stored in model.float().state_dict().items():
        values = stored
        if kind == "q8_0" and values.ndim == 2:
            codes = gguf.quantize(stored.numpy(), gguf.GGMLQuantizationType.Q8_0)
            values = torch.from_numpy(gguf.dequantize(codes, gguf.GGMLQuantizationType.Q8_0))
        elif kind == "f16" and values.ndim == 2:
            values = stored.half().float()
        torch.testing.assert_close(found[name].float(), values, rtol=0, atol=0, msg=name)


def test_factors_of_a_longer_context_are_tensors(tmp_path: Path) -> None:
    settings = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    kind = Kind("Llama", "llama", {"rope_parameters": settings, "head_dim": 64})
    model = saved(kind, tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out.gguf")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2).float() / 64)
    expected = (plain / model.model.rotary_emb.inv_freq).numpy()
    np.testing.assert_allclose(found["rope_freqs.weight"].data, expected, rtol=1e-5)
    merge(copy_of(tmp_path / "out.gguf"), tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    kept = {key: back.config.rope_parameters[key] for key in settings}
    assert kept == settings


def test_an_interrupted_export_continues(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path / "in")
    export(tmp_path / "in", tmp_path / "whole.gguf", type="q8_0")

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "in", path, type="q8_0", observer=Observer(progressed=stop))
    assert not path.exists()
    assert (tmp_path / "out.gguf.partial").is_dir()
    export(tmp_path / "in", path, type="q8_0")
    found, whole = told(path), told(tmp_path / "whole.gguf")
    assert {**found, "general.name": ""} == {**whole, "general.name": ""}
    assert path.read_bytes()[-1000:] == (tmp_path / "whole.gguf").read_bytes()[-1000:]


def test_what_a_gguf_file_cannot_say_is_refused(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out.gguf")
    with pytest.raises(OutputError, match="exists already"):
        export(tmp_path / "in", tmp_path / "out.gguf")
    export(tmp_path / "in", tmp_path / "out.gguf", overwrite=True)
    with pytest.raises(LoomError, match="'q4_k' is unknown: choose"):
        export(tmp_path / "in", tmp_path / "b.gguf", type="q4_k")
    saved(MIXTURES["qwen3moe"], tmp_path / "moe")
    config = tmp_path / "moe" / "config.json"
    config.write_text(
        config.read_text().replace('"norm_topk_prob": true', '"norm_topk_prob": false')
    )
    with pytest.raises(CheckpointError, match="'norm_topk_prob: False', which a GGUF file"):
        export(tmp_path / "moe", tmp_path / "d.gguf")
    config = tmp_path / "in" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"gpt2"'))
    with pytest.raises(CheckpointError, match="of type 'gpt2', which cannot be exported to GGUF"):
        export(tmp_path / "in", tmp_path / "c.gguf")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(folder: Path, add: dict[str, torch.Tensor], leave: str = "") -> None:
    tensors = {**load_file(folder / "model.safetensors"), **add}
    kept = {name: value for name, value in tensors.items() if name != leave}
    save_file(kept, folder / "model.safetensors")


def change_words(folder: Path, words: Tokenizer, **config: Any) -> None:
    words.save(str(folder / "tokenizer.json"))
    change_config(folder, **config)


def split_oddly() -> Tokenizer:
    words = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    words.pre_tokenizer = Sequence([Split("a", "isolated"), ByteLevel(use_regex=False)])
    return words


EXPERT = "model.layers.0.mlp.experts.1.up_proj.weight"
NOT_EXPORTED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no epsilon": (
        "llama",
        lambda folder: change_config(folder, rms_norm_eps=None),
        "config.json has no 'rms_norm_eps': add it",
    ),
    "another rotary embedding": (
        "llama",
        lambda folder: change_config(
            folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        "has a rotary embedding of the type 'dynamic', which cannot be exported: llama.cpp",
    ),
    "a further tensor": (
        "llama",
        lambda folder: change_tensors(folder, {"model.layers.0.gate.weight": torch.ones(2, 2)}),
        "has 'model.layers.0.gate.weight', unlike GGUF files of a 'llama': llama.cpp",
    ),
    "no embedding": (
        "llama",
        lambda folder: change_tensors(folder, {}, "model.embed_tokens.weight"),
        "has no embedding, so it is not a complete model: copy",
    ),
    "an expert of another size": (
        "qwen3moe",
        lambda folder: change_tensors(folder, {EXPERT: torch.ones(3, 3)}),
        "experts.0.up_proj.weight' and others like it: ",
    ),
    "an expert less": (
        "qwen3moe",
        lambda folder: change_tensors(folder, {}, EXPERT),
        f"'{EXPERT}' is missing: ",
    ),
    "words": (
        "llama",
        lambda folder: change_words(folder, Tokenizer(WordLevel({"a": 0}, unk_token="a"))),
        "it is of the type WordLevel, not BPE: export with tokenizer=False",
    ),
    "words without bytes": (
        "llama",
        lambda folder: change_words(folder, Tokenizer(BPE(vocab={"a": 0}, merges=[]))),
        "it cannot represent arbitrary bytes: export with tokenizer=False",
    ),
    "words that are split oddly": (
        "llama",
        lambda folder: change_words(folder, split_oddly()),
        "GGUF has no name for its pre-tokenizer: export with tokenizer=False",
    ),
    "words without rows": (
        "llama",
        lambda folder: change_words(folder, Tokenizer(BPE(vocab={"a": 1000}, merges=[]))),
        "has tokens without a row in its embedding: merge it with",
    ),
}


@pytest.mark.parametrize("case", NOT_EXPORTED)
def test_a_model_that_cannot_be_exported_says_why_and_what_to_do(case: str, tmp_path: Path) -> None:
    family, change, words = NOT_EXPORTED[case]
    saved({**FAMILIES, **MIXTURES}[family], tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(CheckpointError) as caught:
        export(tmp_path / "in", tmp_path / "out.gguf", type="f32")
    assert words in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "out.gguf").exists()


@pytest.fixture(scope="module")
def exported(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export(real, folder / "model.gguf", type="q8_0", ram="4GiB")
    return folder / "model.gguf"


def test_a_real_model_keeps_its_tokenizer_and_settings(real: Path, exported: Path) -> None:
    mine, original = told(exported), told(real)
    keys = {key for key in mine if key.startswith("tokenizer.")}
    assert keys == {key for key in original if key.startswith("tokenizer.")} - {
        "tokenizer.ggml.add_space_prefix"  # which says nothing of bytes
    }
    for key in keys:
        assert mine[key] == original[key], key
    same = {key for key in mine.keys() & original.keys() if key.startswith("llama.")}
    assert len(same) > 8
    for key in same:
        assert mine[key] == pytest.approx(original[key]), key


def test_exported_bytes_do_not_depend_on_the_budget(
    real: Path, exported: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mergeloom", "export", str(real), str(tmp_path / "model.gguf")]
    options = ("--type", "q8_0", "--ram", "320MiB", "--threads", "1")
    subprocess.run([*command, *options], capture_output=True, timeout=300, check=True)
    assert digest(tmp_path / "model.gguf") == digest(exported)


SPEAK = """
import sys, xllamacpp
asked = xllamacpp.CommonParams()
asked.model.path, asked.n_ctx, asked.n_parallel, asked.warmup = sys.argv[1], 128, 1, False
asked.cpuparams.n_threads = 2
server = xllamacpp.Server(asked)
prompt = "<|im_start|>user\\nWhat is the capital of France?<|im_end|>\\n<|im_start|>assistant\\n"
said = server.handle_completions({"prompt": prompt, "max_tokens": 8, "temperature": 0})
print("SAID", said["choices"][0]["text"])
"""


GUESS = """
import sys, json, xllamacpp
for path in sys.argv[2:]:
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel, asked.warmup = path, 64, 1, False
    asked.cpuparams.n_threads = 2
    server = xllamacpp.Server(asked)
    said = server.handle_completions(
        {"prompt": json.loads(sys.argv[1]), "max_tokens": 1, "temperature": 0, "logprobs": 8}
    )
    best = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    print("GUESSED", json.dumps({one["id"]: one["logprob"] for one in best}))
"""


def test_llama_cpp_computes_with_experts_as_transformers_does(tmp_path: Path) -> None:
    if find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed")
    words = Tokenizer(BPE(vocab={chr(33 + i): i for i in range(94)}, merges=[]))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    prompt, expected, files = [5, 60, 17, 42, 8], [], []
    for name, kind in MIXTURES.items():
        model = saved(kind, tmp_path / name)
        words.save(str(tmp_path / name / "tokenizer.json"))
        files.append(tmp_path / f"{name}.gguf")
        export(tmp_path / name, files[-1], type="f32")
        with torch.no_grad():
            expected.append(model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1))
    command = [sys.executable, "-c", GUESS, json.dumps(prompt), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    guessed = [line for line in done.stdout.splitlines() if line.startswith("GUESSED")]
    assert len(guessed) == len(files)
    for line, logprobs in zip(guessed, expected, strict=True):
        found = {int(key): value for key, value in json.loads(line[8:]).items()}
        assert len(found) == 8
        for token, value in found.items():
            assert value == pytest.approx(float(logprobs[token]), abs=2e-2)


def test_llama_cpp_loads_an_exported_model_and_generates_the_same_answers(exported: Path) -> None:
    if find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed")
    command = [sys.executable, "-c", SPEAK, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "SAID The capital of France is Paris." in done.stdout
