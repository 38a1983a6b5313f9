"""Carry out what the table of families says and tell what is not so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from mergeloom import api
from mergeloom.engine.base.errors import LoomError
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.planners.models.model import StoredModel
from tests.families.by_function import (
    layers_of,
    watch,
    wrong_around,
    wrong_layers,
    wrong_parts,
)
from tests.families.family import Family, Span, Stack
from tests.families.tiny import DEPTH, at_depth, fill, make_model

LOADED = ("missing_keys", "unexpected_keys", "mismatched_keys")


Depths = tuple[int, int]
"""The numbers of layers of the two models."""

ALIKE: Depths = (DEPTH, DEPTH)

CONTRADICTION = "the config.json of "
"""Words of a warning that a configuration contradicts tensors, as none saved by a class does."""

DEPTH_WARNING = "the output computes with the first, for layers of the others too"
"""Words of a warning about a constant that models of different depths do not share."""


class Pair:
    """Two models of one family with different weights, saved and loaded."""

    def __init__(self, family: Family, folder: Path, depths: Depths = ALIKE) -> None:
        self.family = family
        self.depths = depths
        self.cls = getattr(transformers, family.cls)
        self.paths = (folder / "A", folder / "B")
        self.models = []
        made = {depth: make_model(family.cls, family.sizes, depth) for depth in depths}
        for seed, (path, depth) in enumerate(zip(self.paths, depths, strict=True)):
            model = made[depth]
            fill(model, seed)
            model.save_pretrained(path)
            self._like_the_hub(path, depth)
            self.models.append(self.load(path))

    def _like_the_hub(self, path: Path, depth: int) -> None:
        if self.family.config is not None:
            config = read_config(path)
            before = dict(config)
            self.family.config(config)
            own = {key: value for key, value in config.items() if value != before.get(key)}
            config.update(at_depth(own, depth))
            (path / "config.json").write_text(json.dumps(config, indent=2))
        if self.family.tensors is not None:
            tensors = load_tensors(path)
            self.family.tensors(tensors)
            save_file(tensors, path / "model.safetensors", {"format": "pt"})

    def load(self, path: Path) -> Any:
        """The model in a directory; the reason, as text, if it does not load as a whole."""
        try:
            model, about = self.cls.from_pretrained(
                path, output_loading_info=True, attn_implementation="eager"
            )
        except Exception as error:
            return f"does not load: {type(error).__name__}: {error}".replace("\n", " ")[:300]
        for key in LOADED:
            found = sorted(map(str, about[key]))
            if self.family.predictor:
                depth = len(layers_of(model, self.family.stacks[0].path))
                found = [name for name in found if f".{depth}." not in name]
            if found:
                return f"{key.replace('_', ' ')}: {found[:4]}"
        return model.eval()

    def path(self, which: str) -> Path:
        return self.paths["AB".index(which)]

    def spans(self, stack: Stack) -> tuple[Span, ...]:
        """The layers of a stack; a part up to a model's end reaches that of a deeper one."""
        ends = dict(zip("AB", self.depths, strict=True))
        return tuple(
            (w, start, ends[w] if stop == DEPTH else stop) for w, start, stop in stack.spans
        )

    def model(self, which: str) -> Any:
        return self.models["AB".index(which)]


def read_config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors.update(load_file(shard))
    return tensors


def merge(config: Mapping[str, Any], output: Path) -> api.MergeResult:
    return api.merge(config, output, threads=1, ram="4GiB", device="cpu", io="buffered")


def wrong_whole(pair: Pair, folder: Path) -> Iterator[str]:
    """What is wrong with a copy of one model, and with the mean of two."""
    a, b = map(load_tensors, pair.paths)
    mean = {name: _mean(tensor, b[name]) for name, tensor in a.items()}
    copy = {"merge_method": "passthrough", "models": [{"model": str(pair.paths[0])}]}
    half = {"weight": 0.5}
    models = [{"model": str(path), "parameters": half} for path in pair.paths]
    linear = {"merge_method": "linear", "models": models}
    for what, config, expected in (("copy", copy, a), ("mean", linear, mean)):
        output = folder / what
        try:
            result = merge(config, output)
        except LoomError as error:
            yield f"{what} refused: {error}"
            continue
        except Exception as error:
            yield f"{what} crashes: {error!r}"
            continue
        yield from (f"{what}: {w}" for w in result.planned.plan.warnings if CONTRADICTION in w)
        yield from (f"{what}: {fault}" for fault in _differences(load_tensors(output), expected))
        before, after = read_config(pair.paths[0]), read_config(output)
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield f"{what}: config has {key}: {after.get(key)!r}, not {before.get(key)!r}"


def _mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if not one.is_floating_point():
        return one
    return one.double().add(other.double()).div(2).to(one.dtype)


def _differences(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    if found.keys() != expected.keys():
        yield f"lacks {sorted(expected.keys() - found.keys())[:4]}"
        yield f"has {sorted(found.keys() - expected.keys())[:4]} besides"
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape) or not torch.allclose(one, other):
            yield f"'{name}' differs"


def wrong_stack(pair: Pair, stack: Stack, output: Path) -> Iterator[str]:
    """What is wrong with one stack of layers of the two models."""
    stack = replace(stack, spans=pair.spans(stack))
    try:
        result = merge(_in_tower(pair, stack, _stacked(pair, stack), "passthrough"), output)
    except LoomError as error:
        if stack.refused is None:
            yield f"refused: {error}"
        elif stack.refused not in str(error):
            yield f"not refused for '{stack.refused}' but: {error}"
        return
    except Exception as error:
        yield f"crashes: {error!r}"
        return
    if stack.refused is not None and pair.depths == ALIKE:
        yield f"not refused for '{stack.refused}'"
        return
    model = pair.load(output)
    if isinstance(model, str):
        yield model
        return
    origins = [("AB".index(w), i) for w, start, stop in stack.spans for i in range(start, stop)]
    if (count := len(layers_of(model, stack.path))) != len(origins):
        yield f"{count} layers instead of {len(origins)}"
        return
    run = stack.run or pair.family.run
    calls = watch(model, stack.path, run)
    warnings = result.planned.plan.warnings
    if stack.says is None and not any(DEPTH_WARNING in warning for warning in warnings):
        yield from wrong_layers(calls, pair.models, origins, stack.path, run)
    elif stack.says is not None and not any(stack.says in warning for warning in warnings):
        yield f"no warning says '{stack.says}'"
    first, last = pair.model(stack.spans[0][0]), pair.model(stack.spans[-1][0])
    yield from wrong_around(model, calls, first, last, stack, pair.depths)
    yield from wrong_parts(model, pair.models, origins, stack)


def wrong_mean(pair: Pair, stack: Stack, output: Path) -> Iterator[str]:
    """What is wrong with the mean of layers at different numbers of models of two depths."""
    starts = {which: 2 * (depth > DEPTH) for which, depth in zip("AB", pair.depths, strict=True)}
    sources = [_source(pair, (which, at, at + 3)) for which, at in starts.items()]
    for source in sources:
        source["parameters"] = {"weight": 0.5}
    try:
        merge(_in_tower(pair, stack, [{"sources": sources}], "linear"), output)
    except LoomError as error:
        if stack.refused is None:
            yield f"mean refused: {error}"
        return
    except Exception as error:
        yield f"mean crashes: {error!r}"
        return
    model = pair.load(output)
    if isinstance(model, str):
        yield f"mean: {model}"
        return
    layers = [layers_of(found, stack.path) for found in (model, *pair.models)]
    if len(layers[0]) != 3:
        yield f"mean: {len(layers[0])} layers instead of 3"
        return
    for i, layer in enumerate(layers[0]):
        own, a, b = (
            dict(found.named_parameters())
            for found in (layer, layers[1][i + starts["A"]], layers[2][i + starts["B"]])
        )
        for name in own.keys() & a.keys() & b.keys():  # the first has relative positions in T5
            if not torch.allclose(own[name], (a[name] + b[name]) / 2):
                yield f"mean: '{name}' of layer {i} is not the mean"


def _source(pair: Pair, span: Span) -> dict[str, Any]:
    which, start, stop = span
    return {"model": str(pair.path(which)), "layer_range": [start, stop]}


def _stacked(pair: Pair, stack: Stack) -> list[dict[str, Any]]:
    return [{"sources": [_source(pair, span)]} for span in stack.spans]


def _in_tower(
    pair: Pair, stack: Stack, slices: list[dict[str, Any]], method: str
) -> dict[str, Any]:
    """A configuration with slices of one tower; the others, if any, are the first model's."""
    if stack.module is None:
        return {"merge_method": method, "slices": slices}
    donor = StoredModel("A", open_checkpoint(pair.paths[0]))
    names = [tower.name for tower in donor.architecture.towers]
    own = {} if method == "passthrough" else {"parameters": {"weight": 1.0}}
    whole = {"models": [{"model": str(pair.paths[0]), **own}]}
    inside = [name for name in names if f"{name}.".startswith(f"{stack.module}.")]
    assert inside, f"{stack.module} is not among {names}"
    modules = {name: whole for name in names if name not in inside}
    return {"merge_method": method, "modules": {stack.module: {"slices": slices}, **modules}}


def problems(
    family: Family, folder: Path, depths: Depths = ALIKE
) -> Iterator[tuple[str, list[str]]]:
    """What is judged of a family, and what is wrong with each.

    Two models of one depth are also merged whole, two of different depths in part.
    """
    pair = Pair(family, folder, depths)
    unloaded = [model for model in pair.models if isinstance(model, str)]
    yield "itself", unloaded
    if unloaded:
        return
    if depths == ALIKE:
        yield "whole", list(wrong_whole(pair, folder))
    for number, stack in enumerate(family.stacks):
        output = folder / f"stack{number}"
        wrong = list(wrong_stack(pair, stack, output))
        if depths != ALIKE:
            wrong += wrong_mean(pair, stack, output.with_suffix(".mean"))
        yield f"stack {number}", wrong
