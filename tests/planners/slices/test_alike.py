"""Tensors of alike layers are planned as each would be planned alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergeloom.planners.tensors import AlikePlan, Contribution, TensorPlan
from tests.planners.support import STACK, llama_names, llamas, made_of, plan_text, write_checkpoint

CONFIG = {"num_hidden_layers": 4, "vocab_size": 32, "hidden_size": 8}
UP = "model.layers.{}.mlp.up_proj.weight"


def odd(folder: Path, name: str) -> None:
    """A decoder with a wider layer, one of another dtype, one without a tensor, and integers."""
    tensors = {each: torch.randn(8, 8) for each in llama_names(4)}
    for each in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[each] = torch.randn(32, 8)
    tensors[UP.format(1)] = torch.randn(12, 8)
    tensors[UP.format(2)] = tensors[UP.format(2)].half()
    if name == "b":
        del tensors[UP.format(3)]
    tensors |= {f"model.layers.{n}.mlp.places": torch.arange(4) for n in range(4)}
    write_checkpoint(folder / name, tensors, CONFIG)


LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: WEIGHT}}
  - {model: b, parameters: {weight: 1}}
"""
BASE = """
merge_method: task_arithmetic
base_model: b
models: [{model: a, parameters: {weight: WEIGHT}}]
"""


@pytest.mark.parametrize("weight", ["0.5", "[0.1, 0.9]", "[{filter: mlp, value: 1}, {value: 2}]"])
@pytest.mark.parametrize("text", [LINEAR, BASE], ids=["linear", "base"])
def test_each_layer_has_its_own_dtypes_shapes_and_names(
    weight: str, text: str, tmp_path: Path
) -> None:
    for name in "ab":
        odd(tmp_path, name)
    plan = plan_text(text.replace("WEIGHT", weight), tmp_path, allow_different_architectures=True)
    shapes = {write.name: (write.shape, write.dtype.name) for write in plan.graph.writes}
    assert [shapes[UP.format(n)] for n in range(4)] == [
        *(((8, 8), "float32"), ((12, 8), "float32"), ((8, 8), "float16"), ((8, 8), "float32"))
    ]
    for each in plan.tensor_plans():
        assert {name for _, name in made_of(each)} == {each.name}
        models = ["a"] if each.name == UP.format(3) else ["a", "b"]
        copied = each.name.endswith("places") or len(models) == 1
        assert (each.copied_because is not None) is copied
        both = made_of(each) + [(item.model.name, item.tensor) for item in each.passed_over]
        assert sorted(model for model, _ in both) == models
        if copied and len(models) == 2:
            assert made_of(each)[0][0] == ("b" if text is BASE else "a")
        number = each.layer
        assert number is None or f".{number}." in each.name
        assert [item.layer for item in each.contributions] == [number] * len(each.contributions)


def test_layers_that_moved_keep_the_names_they_had(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    plan = plan_text(STACK, tmp_path)
    plans = [each for each in plan.tensor_plans() if each.layer is not None]
    assert all(isinstance(each, AlikePlan) for each in plans)
    for each in plans:
        assert each.layer is not None
        model, layer = ("a", each.layer) if each.layer < 3 else ("b", each.layer - 2)
        wanted = each.name.replace(f"layers.{each.layer}.", f"layers.{layer}.")
        assert made_of(each) == [(model, wanted)]
        (load,) = next(w for w in plan.graph.writes if w.name == each.name).merge.gather.inputs
        assert load.name == wanted


def test_what_was_passed_over_has_its_own_names() -> None:
    one = Contribution(None, "x.0", "x.", False, {})  # any model will do
    first = TensorPlan("x.0", 0, None, (one,), {}, "because", (one,))
    alike = AlikePlan("x.1", 1, first, ("y.2", "z.3"))
    assert [item.tensor for item in (*alike.contributions, *alike.passed_over)] == ["y.2", "z.3"]
    assert (alike.name, alike.layer, alike.same_as) == ("x.1", 1, None)
    assert (alike.copied_because, alike.method) == ("because", None)
