"""Configurations and names of tensors, and what becomes of the one when layers are stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.planners.models.architecture import infer_architecture
from mergeloom.planners.output.layers.described import Description, describe
from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RestackedTower, RewrittenConfig, SourceLayer

Config = dict[str, Any]
BLOCK = (".attn.q.weight", ".attn.k.weight", ".mlp.weight", ".norm.weight")


def model(config: Config, depths: Mapping[str, int], name: str = "m") -> list[Description]:
    """The towers of a model: ``depths`` are their depths by the prefixes of their tensors, the
    main one (the one with the embedding) first."""
    main = next(iter(depths))
    names = [f"{main.rpartition('layers.')[0]}embed_tokens.weight"]
    names += [
        f"{prefix}{i}{part}" for prefix, n in depths.items() for i in range(n) for part in BLOCK
    ]
    towers = {
        tower.prefix: tower
        for tower in infer_architecture(dict.fromkeys(names, (8, 8)), config).towers
    }
    return describe(name, config, [towers[prefix] for prefix in depths])


def restacked(
    config: Config, depths: Mapping[str, int], origins: Mapping[str, Sequence[int]]
) -> RewrittenConfig:
    """``config`` after towers were stacked: ``origins`` are the layers that they are made of, by
    prefix; towers that are not named stay as they are."""
    donors = model(config, depths)
    towers = []
    for donor in donors:
        layers = origins.get(donor.tower.prefix, range(donor.depth))
        made = tuple(SourceLayer(donor, layer) for layer in layers)
        towers.append(RestackedTower(donor.tower.prefix, donor, made))
    return rewrite_layers(config, towers)


def stacked(
    config: Config, origins: Sequence[int], prefix: str = "model.layers."
) -> RewrittenConfig:
    """``config``, of a model with one tower of as many layers as it counts, after stacking."""
    text = config.get("text_config", config)
    depth = next(text[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if key in text)
    return restacked(config, {prefix: depth}, {prefix: origins})


def ok(rewritten: RewrittenConfig) -> Config:
    """The configuration, which nothing speaks against."""
    assert rewritten.refusals == []
    assert rewritten.warnings == []
    return rewritten.config
