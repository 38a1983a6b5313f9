"""Models with vocabularies of their own, for all tests of vocabularies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.planners.vocabulary.models import model
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, TEXTS, add, train


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
