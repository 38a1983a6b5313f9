"""What the matrix of families says about one family: how to make it, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[Any], Any]
Span = tuple[str, int, int]
"""Layers ``[start, stop)`` of model ``"A"`` or ``"B"``."""

ODD: tuple[Span, ...] = (("A", 0, 3), ("B", 2, 4))
"""The usual stack: 5 layers of models with 4, the second part moved by one layer."""


@dataclass(frozen=True)
class Stack:
    """Layers of two models stacked in one tower.

    ``path`` is the tower's module in transformers' model, ``module`` what ``modules`` calls it
    where there are several. ``refused`` are words of the refusal where the stack cannot be one
    model; ``says`` words of a warning, where the layers compute something else because a constant
    of theirs follows the depth. ``root`` is the module beyond which no weight acts after these
    layers, however late it runs. Names with a part in ``from_first`` or ``from_last`` are that
    slice's wherever they act; those in ``by_layer`` have a part for each layer, which is that
    layer's. ``parts`` are further lists with one module for each of these layers.
    """

    path: str
    spans: tuple[Span, ...] = ODD
    module: str | None = None
    refused: str | None = None
    says: str | None = None
    root: str = ""
    from_first: tuple[str, ...] = ()
    from_last: tuple[str, ...] = ()
    by_layer: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    run: Run | None = None


@dataclass(frozen=True)
class Family:
    """One kind of model: a class of transformers, values of its configuration, stacks of it.

    ``config`` changes the saved configuration and ``tensors`` the saved tensors to what the hub
    has. A ``predictor`` is a layer behind the last that transformers does not load.
    """

    name: str
    cls: str
    run: Run
    stacks: tuple[Stack, ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    config: Callable[[dict[str, Any]], Any] | None = None
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None
    predictor: bool = False


def tokens(count: int = 12) -> torch.Tensor:
    """A sequence of token ids."""
    return (torch.arange(count) * 7 % 50 + 3)[None]


def pixels(*shape: int) -> torch.Tensor:
    """An image, or something like it: the same values each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def text(model: Any) -> Any:
    return model(input_ids=tokens(), use_cache=False)


def encoder(model: Any) -> Any:
    return model(input_ids=tokens())


def encoder_decoder(model: Any) -> Any:
    return model(input_ids=tokens(), decoder_input_ids=tokens(6), use_cache=False)


def image(model: Any) -> Any:
    return model(pixel_values=pixels(1, 3, 16, 16))


def image_and_text(model: Any) -> Any:
    return model(input_ids=tokens(), pixel_values=pixels(1, 3, 16, 16))


def sound(model: Any) -> Any:
    return model(pixels(1, 800))


def drop(*keys: str, **added: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a configuration: some keys less, others more; ``text__key`` is nested."""

    def change(config: dict[str, Any]) -> None:
        for key in keys:
            *path, last = key.split(".")
            place = config
            for part in path:
                place = place[part]
            place.pop(last, None)
        config.update(added)

    return change
