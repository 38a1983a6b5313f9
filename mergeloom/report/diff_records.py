"""Records of differences between models. Norms are Euclidean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.report.document import Document


@dataclass(frozen=True)
class ValuesReport:
    """How the values of one or more tensors differ; null if a number is undefined."""

    elements: int
    difference: float | None
    """‖b - a‖ / ‖a‖"""
    cosine: float | None
    """Cosine of the angle between a and b."""
    changed: float
    """Share of elements that differ."""
    change_a: float | None = None
    """‖a - base‖ / ‖base‖; null without a base, like the following fields."""
    change_b: float | None = None
    change_cosine: float | None = None
    """Cosine of the angle between the changes of a and b to the base."""
    changed_by_a: float | None = None
    """Share of elements that a changed from the base."""
    changed_by_b: float | None = None
    opposed: float | None = None
    """Of the elements changed by both, the share changed in opposite directions."""


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
    """Null if values were not requested, or cannot be compared."""
    tensor_a: str | None = None
    """Its name in a, if that differs."""


@dataclass(frozen=True)
class GroupReport:
    """Differences of all tensors of a layer or kind together."""

    name: str
    layer: int | None
    tensors: int
    values: ValuesReport


@dataclass(frozen=True)
class SettingReport:
    """A differing value of ``config.json``; null if absent."""

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
    """Number of tensors by dtype."""


@dataclass(frozen=True, kw_only=True)
class DiffReport(Document):
    """How two models differ, and how both differ from a base."""

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
    """By layer of the main stack, weights outside the layers first; empty without values."""
    kinds: tuple[GroupReport, ...]
    """By kind of tensor; empty without values."""
    whole: ValuesReport | None
    read_bytes: int
    """Bytes read, or that ``--values`` would read."""


@dataclass(frozen=True, kw_only=True)
class InputsDiffReport(Document):
    """How the output of a merge (b) differs from each of its inputs (a), and how both differ from
    the merge's base. Each tensor is compared with its source."""

    document: str = "inputs-diff"
    output: str
    inputs: tuple[DiffReport, ...]
    read_bytes: int
    """Total bytes read."""
