"""Two layouts of a layer are told from one layout with a tensor more."""

from __future__ import annotations

from mergeloom.planners.models.naming import naming_clash


def test_one_more_tensor_is_the_same_layout() -> None:
    assert naming_clash(["q.weight", "q.bias"], ["q.weight"]) is None
    assert naming_clash(["q.weight"], ["q.weight", "q.bias"]) is None


def test_experts_one_by_one_and_fused_are_two_layouts() -> None:
    single = [f"experts.{i}.{w}.weight" for i in range(4) for w in ("w1", "w2", "w3")]
    fused = ["experts.gate_up_proj", "experts.down_proj"]
    assert naming_clash(single, fused) == ("experts.0.w1.weight", "experts.down_proj")


def test_old_names_of_a_norm_are_another_naming() -> None:
    assert naming_clash(["norm.gamma", "norm.beta"], ["norm.weight", "norm.bias"]) == (
        "norm.beta",
        "norm.bias",
    )


def test_more_experts_are_of_the_same_kind() -> None:
    few, many = ([f"experts.{i}.w1.weight" for i in range(n)] for n in (4, 8))
    assert naming_clash(few, many) is None
