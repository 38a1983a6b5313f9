"""The example configurations: each one plans, and those of the first question give its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergeloom
from mergeloom.planners.config.load import load_config
from scripts.fixtures.checkpoints import make

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yml"))
QUESTION = ("AIDC-ai-business/Marcoroni-7B-v3", "Toten5/Marcoroni-neural-chat-7B-v2")


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two 7B models, as headers without data."""
    folder = tmp_path_factory.mktemp("question")
    return {
        name: make(folder / str(number), "7b", seed=number, sparse=True)
        for number, name in enumerate(QUESTION)
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return [
        make(folder / str(number), "tiny", seed=number, finetune_of=99, layers=16)
        for number in range(5)
    ]


def test_the_first_question_has_its_answer(question: dict[str, Path]) -> None:
    folder = Path(__file__).parents[1] / "configs"
    stack = mergeloom.plan(folder / "first_question_stack.yml", model_dirs=question)
    assert (stack.plan.layers, stack.plan.parameters) == (48, 10_731_524_096)
    blend = mergeloom.plan(folder / "first_question_blend.yml", model_dirs=question)
    assert (blend.plan.layers, blend.plan.parameters) == (24, 5_496_836_096)
    values = {
        name: blend.plan.explain(f"model.layers.12.{name}.weight").settings["t"].value
        for name in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    }
    at = 12 / 23 * 4 - 2  # between the third and the fourth of five values
    assert values["self_attn.q_proj"] == pytest.approx(0.3 + at * (0.7 - 0.3))
    assert values["mlp.up_proj"] == pytest.approx(0.7 + at * (0.3 - 0.7))
    assert values["input_layernorm"] == 0.5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_plans_and_runs(
    path: Path, tiny: list[Path], question: dict[str, Path], tmp_path: Path
) -> None:
    names = dict.fromkeys(
        str(reference.model)
        for document in load_config(path).documents
        for reference in document.merged_models()
    )
    if set(names) <= set(question):
        mergeloom.plan(path, model_dirs=question)
        return
    dirs = dict(zip(names, tiny, strict=False))
    assert len(dirs) == len(names)
    planned = mergeloom.plan(path, model_dirs=dirs)
    assert planned.plan.warnings == ()
    mergeloom.merge(planned, tmp_path / "out")
