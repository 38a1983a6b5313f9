"""How two models differ, as plain records. Norms are Euclidean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.report.document import Document


@dataclass(frozen=True)
class ValuesReport:
    """How the values of a tensor, or of several, differ; nothing where a number is not defined."""

    elements: int
    difference: float | None
    """‖b - a‖ / ‖a‖"""
    cosine: float | None
    """Of the angle between a and b."""
    changed: float
    """Share of the elements that are not equal."""
    change_a: float | None = None
    """‖a - base‖ / ‖base‖; as what follows, nothing without a base."""
    change_b: float | None = None
    change_cosine: float | None = None
    """Of the angle between what a and what b changed of the base."""
    changed_by_a: float | None = None
    """Share of the elements that a changed of the base."""
    changed_by_b: float | None = None
    opposed: float | None = None
    """Among the elements that both changed, the share that they changed in opposite directions."""


@dataclass(frozen=True)
class PairReport:
    """A tensor of both models."""

    tensor: str
    layer: int | None
    kind: str
    """The name without the layer's number."""
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    obstacle: str | None
    """Why its values cannot be compared."""
    values: ValuesReport | None
    """Nothing where they were not asked for, or cannot be compared."""
    tensor_a: str | None = None
    """What it is called in a, where that is another name."""


@dataclass(frozen=True)
class GroupReport:
    """What the tensors of a layer, or of a kind, differ by together."""

    name: str
    layer: int | None
    tensors: int
    values: ValuesReport


@dataclass(frozen=True)
class SettingReport:
    """A value of ``config.json`` that differs; nothing where one has none."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class ComparedModel:
    """One of the models."""

    name: str
    parameters: int
    tensors: int
    layers: int
    dtypes: Mapping[str, int]
    """Number of tensors of each type."""


@dataclass(frozen=True, kw_only=True)
class DiffReport(Document):
    """How two models differ, and what they changed of a base."""

    document: str = "diff"
    a: ComparedModel
    b: ComparedModel
    base: ComparedModel | None
    only_a: tuple[str, ...]
    """Tensors that only a has."""
    only_b: tuple[str, ...]
    settings: tuple[SettingReport, ...]
    tensors: tuple[PairReport, ...]
    layers: tuple[GroupReport, ...]
    """By layer of the main stack, what lies outside of layers first; empty without values."""
    kinds: tuple[GroupReport, ...]
    """By kind of tensor; empty without values."""
    whole: ValuesReport | None
    read_bytes: int
    """What was read, or would be with ``--values``."""


@dataclass(frozen=True, kw_only=True)
class InputsDiffReport(Document):
    """How the output of a merge (b) differs from each model that it was made of (a), tensor by
    tensor from the one that it was made of; and what both changed of the merge's base."""

    document: str = "inputs-diff"
    output: str
    inputs: tuple[DiffReport, ...]
    read_bytes: int
    """What was read for all of it."""
