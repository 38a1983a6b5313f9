"""Layers that differ in their tensors by their place."""

from __future__ import annotations

from mergeloom.planners.models.architecture import infer_architecture
from mergeloom.planners.output.layers.described import Description, describe
from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RestackedTower, SourceLayer
from tests.planners.output.layers.support import BLOCK


def modernbert(depth: int, name: str = "m") -> Description:
    """A model whose first layer has no norm before its attention, whatever its kind."""
    config = {"model_type": "modernbert-decoder", "num_hidden_layers": depth}
    names = [f"model.layers.{i}{part}" for i in range(depth) for part in BLOCK]
    names += [f"model.layers.{i}.attn_norm.weight" for i in range(1, depth)]
    (tower,) = infer_architecture(dict.fromkeys(names, (8, 8)), config).towers
    (found,) = describe(name, config, [tower])
    return found


def refusals(donor: Description, *origins: SourceLayer) -> list[str]:
    tower = RestackedTower("t", donor, origins)
    return list(map(str, rewrite_layers(donor.config, [tower]).refusals))


def test_the_first_layer_is_one_without_a_norm() -> None:
    donor = modernbert(8)
    assert not refusals(donor, *(SourceLayer(donor, i) for i in (0, 1, 2, 1, 2, 3, 7)))
    (tail,) = refusals(donor, *(SourceLayer(donor, i) for i in range(2, 8)))
    assert "layer 2 of 'm', which has 'attn_norm.weight', unlike the first layer" in tail
    (inner,) = refusals(donor, *(SourceLayer(donor, i) for i in (0, 1, 0)), SourceLayer(donor, 3))
    assert "layer 0 of 'm', which lacks 'attn_norm.weight', unlike an inner layer" in inner


def test_layers_of_another_model_are_looked_at_too() -> None:
    donor, other = modernbert(4), modernbert(8, "other")
    first = [SourceLayer(donor, i) for i in range(3)]
    assert not refusals(donor, *first, *(SourceLayer(other, i) for i in range(3, 8)))
    (found,) = refusals(donor, *first, *(SourceLayer(other, i) for i in range(3)))
    assert "layer 0 of 'other', which lacks 'attn_norm.weight'" in found
    (found,) = refusals(donor, *(SourceLayer(other, i) for i in range(1, 5)))
    assert "layer 1 of 'other', which has 'attn_norm.weight', unlike the first" in found


def test_layers_of_another_number_that_are_merged_are_looked_at_too() -> None:
    """The first layer, merged with an inner one, would get the norm of the inner one."""
    donor, other = modernbert(4), modernbert(6, "other")
    for depth in (3, 4):  # the donor's layers, some or all of them
        made = tuple(SourceLayer(donor, i) for i in range(depth))
        merged = tuple((layer, SourceLayer(other, layer.layer + 2)) for layer in made)
        tower = RestackedTower("t", donor, made, merged)
        (refusal,) = map(str, rewrite_layers(donor.config, [tower]).refusals)
        assert "layer 2 of 'other', which has 'attn_norm.weight', unlike the first" in refusal
