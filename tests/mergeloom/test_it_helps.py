"""Merging works: from two fine-tunes that each learned a task comes one model that does both.

A transformer is trained from scratch to copy words of two alphabets. One fine-tune learns to write
each letter's successor in the first alphabet, the other to write the fifth letter after it in the
second. Neither can do the other's task.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeloom

LETTERS = 16
LENGTH = 6
SEPARATOR = 2 * LETTERS
TASKS = {"first": (0, 1), "second": (LETTERS, 5)}
"""An alphabet's first token, and how far a letter is shifted."""


def words(task: str, count: int, generator: torch.Generator, *, shifted: bool) -> torch.Tensor:
    """Rows of a word, a separator and the word to be written."""
    start, shift = TASKS[task]
    word = torch.randint(LETTERS, (count, LENGTH), generator=generator)
    answer = (word + shift * shifted) % LETTERS
    return torch.cat([word + start, torch.full((count, 1), SEPARATOR), answer + start], 1)


def written(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Logits of the tokens behind the separator."""
    return model(rows[:, :-1]).logits[:, LENGTH:]


def train(model: Any, tasks: list[str], steps: int, rate: float, *, shifted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.cat([words(task, 32, generator, shifted=shifted) for task in tasks])
        logits = written(model, rows).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, LENGTH + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def score(model: Any, task: str) -> float:
    """Share of letters that are right."""
    rows = words(task, 256, torch.Generator().manual_seed(2), shifted=True)
    with torch.no_grad():
        return float((written(model, rows).argmax(-1) == rows[:, LENGTH + 1 :]).double().mean())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SEPARATOR + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    base = LlamaForCausalLM(config)
    train(base, list(TASKS), 200, 4e-3, shifted=False)
    base.save_pretrained(folder / "base")
    for task in TASKS:
        tune = copy.deepcopy(base)
        train(tune, [task], 100, 1e-3, shifted=True)
        tune.save_pretrained(folder / task)
    torch.set_num_threads(threads)
    return folder


def scores(directory: Path) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    return {task: score(model, task) for task in TASKS}


def test_a_fine_tune_does_its_own_task_only(models: Path) -> None:
    assert max(scores(models / "base").values()) < 0.2
    for task in TASKS:
        found = scores(models / task)
        assert found.pop(task) > 0.95
        assert max(found.values()) < 0.2


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {"weight": 1.0}), ("ties", {"weight": 1.0, "density": 0.5})],
)
def test_a_merge_does_both_tasks(
    method: str, parameters: dict[str, float], models: Path, tmp_path: Path
) -> None:
    config = {
        "merge_method": method,
        "base_model": str(models / "base"),
        "models": [{"model": str(models / task), "parameters": parameters} for task in TASKS],
    }
    mergeloom.merge(config, tmp_path / "out")
    assert min(scores(tmp_path / "out").values()) > 0.7
