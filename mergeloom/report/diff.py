"""The report of ``diff``, computed from sums over tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from mergeloom.methods.statistics.comparison import Changes, PairSums
from mergeloom.planners.comparison import Comparison, TensorPair
from mergeloom.planners.models.checkpoint_outline import number_of_layers
from mergeloom.planners.models.model import Model
from mergeloom.report.diff_records import (
    ComparedModel,
    DiffReport,
    GroupReport,
    PairReport,
    SettingReport,
    ValuesReport,
)

T = TypeVar("T", PairSums, Changes)
Measured = tuple[PairSums, Changes | None]
OUTSIDE = "outside the layers"


def diff_report(found: Comparison, measured: Mapping[str, Measured], read_bytes: int) -> DiffReport:
    """The report; ``measured`` has the sums by tensor, and is empty if values were not compared."""
    a, b = found.models
    pairs = [pair for pair in found.pairs if pair.name in measured]
    whole = _combined_values(pairs, measured)
    by_layer = _group_reports(
        pairs, measured, lambda pair: (-1 if pair.layer is None else pair.layer, _layer_name(pair))
    )
    by_kind = _group_reports(pairs, measured, lambda pair: (0, pair.kind))
    return DiffReport(
        a=_compared_model(a),
        b=_compared_model(b),
        base=None if found.base is None else _compared_model(found.base),
        only_a=found.only[0],
        only_b=found.only[1],
        settings=tuple(SettingReport(*each) for each in found.settings),
        tensors=tuple(_pair_report(pair, measured.get(pair.name)) for pair in found.pairs),
        layers=tuple(by_layer),
        kinds=tuple(by_kind),
        whole=whole,
        read_bytes=read_bytes,
    )


def _layer_name(pair: TensorPair) -> str:
    return OUTSIDE if pair.layer is None else f"layer {pair.layer}"


def _compared_model(model: Model) -> ComparedModel:
    names = list(model)
    return ComparedModel(
        name=model.name,
        parameters=sum(math.prod(model.shape(name)) for name in names),
        tensors=len(names),
        layers=number_of_layers(model),
        dtypes=dict(Counter(model.dtype(name).name for name in names)),
    )


def _pair_report(pair: TensorPair, found: Measured | None) -> PairReport:
    values = None if found is None else _values_report(math.prod(pair.shapes[0]), *found)
    return PairReport(
        pair.name,
        pair.layer,
        pair.kind,
        *pair.shapes,
        *pair.dtypes,
        obstacle=pair.obstacle,
        values=values,
        tensor_a=None if pair.first == pair.name else pair.first,
    )


def _group_reports(
    pairs: Sequence[TensorPair],
    measured: Mapping[str, Measured],
    key: Callable[[TensorPair], tuple[int, str]],
) -> Iterator[GroupReport]:
    """Pairs grouped and ordered by a key, whose text is the name of the group."""
    groups: dict[tuple[int, str], list[TensorPair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    for (_, name), members in sorted(groups.items()):
        layers = {pair.layer for pair in members}
        values = _combined_values(members, measured)
        if values is not None:
            layer = next(iter(layers)) if len(layers) == 1 else None
            yield GroupReport(name, layer, len(members), values)


def _combined_values(
    pairs: Sequence[TensorPair], measured: Mapping[str, Measured]
) -> ValuesReport | None:
    """Several tensors as one long vector; with changes to a base only if all have one."""
    if not pairs:
        return None
    found = [measured[pair.name] for pair in pairs]
    changes = [each for _, each in found if each is not None]
    return _values_report(
        sum(math.prod(pair.shapes[0]) for pair in pairs),
        _summed_records([each for each, _ in found]),
        _summed_records(changes) if len(changes) == len(found) else None,
    )


def _summed_records(records: Sequence[T]) -> T:
    """Records of one type, summed field by field."""
    names = [field.name for field in fields(records[0])]
    sums: list[Any] = [math.fsum(getattr(each, name) for each in records) for name in names]
    return type(records[0])(*sums)


def _values_report(elements: int, sizes: PairSums, changes: Changes | None) -> ValuesReport:
    return ValuesReport(
        elements=elements,
        difference=_relative_norm(math.sqrt(sizes.difference), math.sqrt(sizes.a)),
        cosine=_ratio(sizes.product, math.sqrt(sizes.a) * math.sqrt(sizes.b)),
        changed=sizes.changed / elements,
        **({} if changes is None else _change_fields(elements, changes)),
    )


def _change_fields(elements: int, found: Changes) -> dict[str, float | None]:
    base = math.sqrt(found.base)
    return {
        "change_a": _relative_norm(math.sqrt(found.a), base),
        "change_b": _relative_norm(math.sqrt(found.b), base),
        "change_cosine": _ratio(found.product, math.sqrt(found.a) * math.sqrt(found.b)),
        "changed_by_a": found.changed_by_a / elements,
        "changed_by_b": found.changed_by_b / elements,
        "opposed": _ratio(found.opposed, found.both),
    }


def _ratio(part: float, whole: float) -> float | None:
    """A quotient; ``None`` if undefined."""
    if not (math.isfinite(part) and math.isfinite(whole)) or whole == 0:
        return None
    return part / whole


def _relative_norm(part: float, whole: float) -> float | None:
    """A norm relative to another; 0 if there is no difference."""
    return 0.0 if part == 0 else _ratio(part, whole)
