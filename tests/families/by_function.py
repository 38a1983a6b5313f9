"""Judge a stacked model by what it computes, layer by layer, against the models it is made of.

Each layer of the loaded output gets some input; the layer that it is said to be runs, within a
forward pass of the model it comes from, on the same input. Masks, rotary tables and whatever else
the surrounding model derives from its own configuration stay its own: a layer that attends
globally in one model and through a window in the other differs, though all weights are equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.families.family import Stack

Run = Callable[[nn.Module], Any]
Origin = tuple[int, int]
"""A model, by its position, and a layer of it."""

CONFIGURED = {
    "attention_mask",
    "causal_mask",
    "mask",
    "attn_mask",
    "head_mask",
    "alibi",
    "position_ids",
    "position_embeddings",
    "position_embeddings_global",
    "position_embeddings_local",
    "freqs_cis",
    "rotary_pos_emb",
    "cu_seqlens",
    "full_text_row_masked_out_mask",
}
"""Arguments of layers that follow from the surrounding model's configuration, not from data."""


@dataclass
class Calls:
    """What one forward pass did: layers' arguments and results, and in which order modules ran.

    ``last`` is the place in that order of the last layer's end.
    """

    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)
    results: dict[int, torch.Tensor] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    last: int = 0


def watch(
    model: nn.Module, path: str, run: Run, fed: Mapping[int, Mapping[str, Any]] | None = None
) -> Calls:
    """Run ``model`` and watch the layers at ``path``; those in ``fed`` get data from there."""
    calls = Calls()
    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            stack.enter_context(module.register_forward_pre_hook(_ordered(calls, name)))
        for number, layer in enumerate(layers_of(model, path)):
            data = (fed or {}).get(number, {})
            for handle in (
                layer.register_forward_pre_hook(_fed(calls, number, data), with_kwargs=True),
                layer.register_forward_hook(_result(calls, number)),
            ):
                stack.enter_context(handle)
        torch.manual_seed(0)
        run(model)
    return calls


def layers_of(model: nn.Module, path: str) -> nn.ModuleList:
    """The layers of a tower."""
    found = model.get_submodule(path)
    assert isinstance(found, nn.ModuleList), path
    return found


def _ordered(calls: Calls, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        calls.order.setdefault(name, len(calls.order))

    return hook


def _fed(calls: Calls, number: int, data: Mapping[str, Any]) -> Callable[..., Any]:
    def hook(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        for place in _places(bound):
            for name in place.keys() & data.keys():
                if _is_data(name, place[name]):
                    place[name] = data[name]
        calls.arguments[number] = {k: v for place in _places(bound) for k, v in place.items()}
        return bound.args, bound.kwargs

    return hook


def _places(bound: inspect.BoundArguments) -> Iterator[dict[str, Any]]:
    yield bound.arguments
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and name in bound.arguments:
            yield bound.arguments[name]


def _is_data(name: str, value: Any) -> bool:
    tensor = isinstance(value, torch.Tensor) and value.is_floating_point()
    return tensor and name not in CONFIGURED


def _result(calls: Calls, number: int) -> Callable[..., None]:
    def hook(layer: nn.Module, args: Any, result: Any) -> None:
        while not isinstance(result, torch.Tensor):
            result = result[0]
        calls.results[number] = result.detach().clone()
        calls.last = len(calls.order)

    return hook


def wrong_layers(
    output: Calls, sources: Sequence[nn.Module], origins: Sequence[Origin], path: str, run: Run
) -> Iterator[str]:
    """Layers of ``output`` that do not compute what the layers at ``origins`` compute."""
    if sorted(output.results) != list(range(len(origins))):
        yield f"layers {sorted(output.results)} ran, {len(origins)} should"
        return
    waiting = dict(enumerate(origins))
    while waiting:
        once = {origin: number for number, origin in reversed(waiting.items())}
        for which, source in enumerate(sources):
            fed = {layer: output.arguments[n] for (w, layer), n in once.items() if w == which}
            theirs = watch(source, path, run, fed).results if fed else {}
            for layer in fed:
                number = once[which, layer]
                if not _equal(output.results[number], theirs[layer]):
                    yield f"layer {number} does not compute what {'AB'[which]}'s {layer} does"
        waiting = {n: o for n, o in waiting.items() if once[o] != n}


def wrong_around(
    output: nn.Module,
    calls: Calls,
    first: nn.Module,
    last: nn.Module,
    stack: Stack,
    depths: tuple[int, int],
) -> Iterator[str]:
    """Weights outside a stack's layers that are from the wrong end of it.

    What ran after the layers is the last slice's, all else the first's.
    """
    a, b = (dict(model.state_dict(keep_vars=True)) for model in (first, last))
    own = dict(output.state_dict(keep_vars=True))
    acts: dict[int, int] = {}  # a weight with two names acts where it is needed first
    for name, tensor in own.items():
        acts[id(tensor)] = min(acts.get(id(tensor), calls.last), _begin(name, calls))
    for name, tensor in own.items():
        inside = name.startswith(tuple(f"{path}." for path in (stack.path, *stack.parts)))
        if inside or not tensor.is_floating_point():
            continue
        if any(part in name for part in stack.by_layer):
            ends = [(a if w == stack.spans[0][0] else b)[name] for w in "AB"]
            if not _same(tensor, _by_layer(ends, tensor.shape, stack, depths)):
                yield f"'{name}' does not have its parts from the layers' models"
            continue
        after = acts[id(tensor)] >= calls.last and name.startswith(stack.root)
        after = after and not any(part in name for part in stack.from_first)
        after = after or any(part in name for part in stack.from_last)
        if not _same(tensor, (b if after else a)[name]):
            other = " but the other's" if _same(tensor, (a if after else b)[name]) else ""
            yield f"'{name}' is not the {'last' if after else 'first'} slice's{other}"


def wrong_parts(
    output: nn.Module, sources: Sequence[nn.Module], origins: Sequence[Origin], stack: Stack
) -> Iterator[str]:
    """Parts of a stack's layers, in lists of their own, that are not those of their layers."""
    for path in stack.parts:
        part = layers_of(output, path)
        if len(part) != len(origins):
            yield f"{len(part)} of '{path}' instead of {len(origins)}"
            continue
        for i, (which, layer) in enumerate(origins):
            theirs = layers_of(sources[which], path)[layer].state_dict()
            own = part[i].state_dict()
            if own.keys() != theirs.keys() or not all(_same(own[n], theirs[n]) for n in own):
                yield f"'{path}' {i} is not {'AB'[which]}'s {layer}"


def _by_layer(
    wholes: Sequence[torch.Tensor], shape: Sequence[int], stack: Stack, depths: Sequence[int]
) -> torch.Tensor:
    """The parts of each layer's own model, along the dimension that is longer in the output."""
    axis = next(n for n, size in enumerate(shape) if size != wholes[0].shape[n])
    parts = {
        which: whole.chunk(depth, axis)
        for which, whole, depth in zip("AB", wholes, depths, strict=True)
    }
    return torch.cat(
        [parts[w][i] for w, start, stop in stack.spans for i in range(start, stop)], axis
    )


def _begin(name: str, calls: Calls) -> int:
    """When the module that owns a weight ran, or the next around it that did."""
    owner = name.rpartition(".")[0]
    while owner not in calls.order and owner:
        owner = owner.rpartition(".")[0]
    return calls.order.get(owner, 0)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
