"""GGUF files that a broken converter would write are refused, by what is wrong and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mergeloom import plan
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFile
from mergeloom.planners.models.gguf.folder import GgufFolder

LAYER = {
    "attn_q": (8, 8),
    "attn_k": (4, 8),
    "attn_v": (4, 8),
    "attn_output": (8, 8),
    "ffn_gate": (16, 8),
    "ffn_up": (16, 8),
    "ffn_down": (8, 16),
    "attn_norm": (8,),
    "ffn_norm": (8,),
}
SHAPES: Mapping[str, tuple[int, ...] | None] = {
    "token_embd": (12, 8),
    "output_norm": (8,),
    "output": (12, 8),
    **{f"blk.0.{name}": shape for name, shape in LAYER.items()},
}
SETTINGS: Mapping[str, Any] = {
    "block_count": 1,
    "context_length": 32,
    "embedding_length": 8,
    "feed_forward_length": 16,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
KINDS = gguf.GGUFValueType


def written(
    path: Path,
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...] | None],
    tokenizer: Mapping[str, Any],
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """A file of a small llama model; what is ``None`` is left out."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    values = {f"llama.{key}": value for key, value in {**SETTINGS, **settings}.items()}
    values |= {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            kind = {int: KINDS.UINT32, float: KINDS.FLOAT32, str: KINDS.STRING}[type(value)]
            writer.add_key_value(key, value, kind)
    for name, shape in {**SHAPES, **shapes}.items():
        if shape is not None:
            dtype = np.float16 if name.startswith("rope") else np.float32
            writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        plan({"merge_method": "passthrough", "models": [{"model": str(path)}]})
    return caught.value


WORDS = {"model": "gpt2", "tokens": ["a", "b"], "merges": ["a b"]}
PIECES = {"model": "llama", "tokens": ["a", "b"]}
MIXTURE = {"expert_count": 1 << 20, "expert_used_count": 2}

BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "no depth": ({"block_count": None}, {}, {}, "has no 'llama.block_count': convert"),
    "half a layer": ({"block_count": 1.5}, {}, {}, "'llama.block_count' is not a whole number: co"),
    "a name as depth": ({"block_count": "1"}, {}, {}, "'llama.block_count' is not a valid number"),
    "no epsilon": (
        {"attention.layer_norm_rms_epsilon": float("nan")},
        {},
        {},
        "'llama.attention.layer_norm_rms_epsilon' is not a valid number: convert",
    ),
    "heads by layer": (
        {"attention.head_count_kv": [1, 2]},
        {},
        {},
        "'llama.attention.head_count_kv' differs between layers: merge its original weights",
    ),
    "deep": ({"block_count": 5000}, {}, {}, "states 5000 layers, but has 12 tensors: copy"),
    "many experts": (MIXTURE, {}, {}, "states 1048576 experts per layer, which is too many: copy"),
    "no embedding": ({}, {"token_embd": None}, {}, "has no embedding ('token_embd.weight'): copy"),
    "odd heads": ({}, {"blk.0.attn_q": (7, 8)}, {}, "'blk.0.attn_q.weight' does not fit the heads"),
    "narrow factors": ({}, {"rope_freqs": (2,)}, {}, "'rope_freqs.weight' is not a list of factor"),
    "no tokens": ({}, {}, {"model": "gpt2"}, "has a tokenizer without tokens: convert"),
    "no merges": ({}, {}, {**WORDS, "merges": None}, "has a tokenizer without merges: convert"),
    "triples": (
        {},
        {},
        {**WORDS, "merges": ["a b c"]},
        "merges that are not pairs of tokens",
    ),
    "no scores": ({}, {}, PIECES, "has a tokenizer without merges or scores: convert"),
    "few scores": ({}, {}, {**PIECES, "scores": [1.0]}, "tokenizer without merges or scores"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_of_a_broken_converter_says_what_is_wrong_with_it(kind: str, tmp_path: Path) -> None:
    settings, shapes, tokenizer, words = BROKEN[kind]
    error = refusal(written(tmp_path / "a.gguf", settings, shapes, tokenizer))
    assert words in str(error)
    assert error.remedy


def test_the_file_that_these_are_made_of_is_sound(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", {}, {}, WORDS)
    assert plan({"merge_method": "passthrough", "models": [{"model": str(path)}]})
    with pytest.raises(CheckpointError, match=r"the 'config\.json' that .* more than 10: merge"):
        GgufFolder.at(LocalFile(path)).read("config.json", 10)


def test_a_file_for_another_byte_order_names_the_program_that_converts_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", {}, {}, {}, gguf.GGUFEndian.BIG)
    assert f"gguf-convert-endian '{path}' little" in refusal(path).remedy


def test_parts_of_a_file_are_told_from_other_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", {}, {}, {})
    for number in (1, 2):
        shutil.copy(path, tmp_path / f"b-0000{number}-of-00002.gguf")
    error = refusal(tmp_path / "b-00001-of-00002.gguf")
    assert "'b-00002-of-00002.gguf' repeats the tensor" in str(error).replace(f"{tmp_path}/", "")
    path.unlink()
    shutil.copy(tmp_path / "b-00001-of-00002.gguf", tmp_path / "c-00001-of-00002.gguf")
    error = refusal(tmp_path)
    assert "has GGUF files of several models (b-00001-of-00002.gguf, c-" in str(error)
    assert "name the first part of one of them" in error.remedy
