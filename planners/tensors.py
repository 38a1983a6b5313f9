"""Plans of output tensors, common to all planners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from mergeloom.engine.base.errors import CheckpointError, Place
from mergeloom.engine.base.records import record
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Method, ParameterError, TensorMerge
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameters import ResolvedValue
from mergeloom.planners.models.model import Model, OutputTensor
from mergeloom.planners.models.roles import is_buffer, may_be_buffer
from mergeloom.planners.models.sameness import equal_bytes


@record(frozen=True, slots=True)
class Contribution:
    """One input of one output tensor: ``tensor`` of ``model``.

    ``prefix`` is the part of its tower's names before the layer number, empty outside towers.
    ``parameters`` are those set per model, with their origin.
    """

    model: Model
    tensor: str
    prefix: str
    is_base: bool
    parameters: Mapping[str, ResolvedValue]

    @property
    def layer(self) -> int | None:
        """The layer number in its model."""
        if not self.prefix or not self.tensor.startswith(self.prefix):
            return None
        number = self.tensor[len(self.prefix) :].partition(".")[0]
        return int(number) if number.isdigit() else None

    @property
    def stored_name(self) -> str:
        """The stored name of the tensor, which may differ from the planner's."""
        stored = self.model.stored(self.tensor)
        return stored.name if stored is not None else self.tensor


@record(frozen=True, slots=True)
class TensorPlan:
    """How one output tensor is computed, with the origin of every parameter.

    ``method`` is ``None`` if the tensor is copied from its only contribution; ``passed_over`` are
    then the other inputs, which should be equal. ``same_as`` is another output tensor that this one
    is a copy of. ``missing`` are the models that lack it. Plans of one ``kind`` differ only in the
    names of tensors.
    """

    name: str
    layer: int | None
    method: Method | None
    contributions: tuple[Contribution, ...]
    settings: Mapping[str, ResolvedValue]
    copied_because: str | None = None
    passed_over: tuple[Contribution, ...] = ()
    missing: tuple[Model, ...] = ()
    same_as: str | None = None
    kind: object = None


_assign = object.__setattr__


class AlikePlan(TensorPlan):
    """The plan of a tensor that differs from that of ``like`` in layer and names only.

    ``names`` are those of its contributions, then of those passed over. Most tensors of a large
    model have such a plan; what they contribute is put together when it is asked for.
    """

    __slots__ = ("like", "names")

    def __init__(
        self, name: str, layer: int | None, like: TensorPlan, names: tuple[str, ...]
    ) -> None:
        _assign(self, "name", name)  # to records, which the type checker takes to be guarded
        _assign(self, "layer", layer)
        _assign(self, "same_as", None)
        self.like, self.names = like, names

    @property
    def method(self) -> Method | None:
        return self.like.method

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        return tuple(map(_renamed, self.like.contributions, self.names))

    @property
    def settings(self) -> Mapping[str, ResolvedValue]:
        return self.like.settings

    @property
    def copied_because(self) -> str | None:
        return self.like.copied_because

    @property
    def passed_over(self) -> tuple[Contribution, ...]:
        names = self.names[len(self.like.contributions) :]
        return tuple(map(_renamed, self.like.passed_over, names))

    @property
    def missing(self) -> tuple[Model, ...]:
        return self.like.missing

    @property
    def kind(self) -> object:
        return self.like.kind


def _renamed(item: Contribution, tensor: str) -> Contribution:
    return Contribution(item.model, tensor, item.prefix, item.is_base, item.parameters)


class ShapeMismatch(Exception):
    """Inputs of one tensor whose shapes differ; collected, and reported together."""

    def __init__(self, tensor: str, inputs: Sequence[Contribution]) -> None:
        super().__init__(tensor)
        self.tensor = tensor
        self.inputs = inputs


def reason_not_merged(model: Model, tensor: str) -> str | None:
    """Why a tensor is not merged but copied; ``None`` if it is a weight."""
    dtype = model.dtype(tensor)
    if not dtype.floating:
        return f"it holds {dtype.holds}"
    if may_be_buffer(tensor) and is_buffer(tensor, model.shape(tensor)):
        return "it is a constant, not a weight"
    return None


def check_shapes(plan: TensorPlan, shapes: Sequence[tuple[int, ...]]) -> None:
    """Check that all inputs of a tensor have the same shape; ``shapes`` are theirs, in order.

    Raises:
        ShapeMismatch: they do not.
    """
    if shapes.count(shapes[0]) < len(shapes):
        raise ShapeMismatch(plan.name, plan.contributions)


def tensor_merge(plan: TensorPlan, shape: tuple[int, ...], seed: int) -> TensorMerge:
    """The arguments for the method of ``plan``."""
    return TensorMerge(
        tensor=plan.same_as or plan.name,
        shape=shape,
        models=tuple(parameter_values(item.parameters) for item in plan.contributions),
        base=next((i for i, item in enumerate(plan.contributions) if item.is_base), None),
        settings=parameter_values(plan.settings),
        seed=seed,
    )


def parameter_values(resolved: Mapping[str, ResolvedValue]) -> dict[str, Any]:
    """The values of parameters, without their origin."""
    return {name: item.value for name, item in resolved.items()}


class Kernels:
    """The kernels of one document. Tensors of one kind and shape share a kernel, unless the method
    depends on their names. ``place`` is where the document names the method."""

    def __init__(self, seed: int, place: Place) -> None:
        self._seed = seed
        self._place = place
        self._kernels: dict[tuple[object, tuple[int, ...]], Kernel] = {}

    def of(self, plan: TensorPlan, method: Method, shape: tuple[int, ...]) -> Kernel:
        """The kernel for a tensor whose inputs have this shape.

        Raises:
            ConfigError: the parameters do not work together.
        """
        if method.by_name or plan.kind is None:
            return self._new_kernel(plan, method, shape)
        found = self._kernels.get((plan.kind, shape))
        if found is None:
            found = self._kernels[plan.kind, shape] = self._new_kernel(plan, method, shape)
        return found

    def _new_kernel(self, plan: TensorPlan, method: Method, shape: tuple[int, ...]) -> Kernel:
        try:
            return method.kernel(tensor_merge(plan, shape, self._seed))
        except ParameterError as error:
            raise self._place.error(f"tensor '{plan.name}': {error.cause}", error.remedy) from error


def build_tensors(
    plans: Iterable[TensorPlan],
    build: Callable[[TensorPlan], OutputTensor],
    findings: Findings,
    rows_remedy: str = "",
) -> list[OutputTensor]:
    """Build the tensors for ``plans``, each with ``build``.

    Reports missing tensors, and copied tensors that differ between models. ``rows_remedy`` is the
    remedy if only the rows of tables outside the layers differ.

    Raises:
        CheckpointError: shapes differ; the message lists the tensors.
    """
    tensors = []
    missing: dict[str, list[str]] = defaultdict(list)
    differing: dict[Hashable, list[TensorPlan]] = defaultdict(list)
    mismatches: list[ShapeMismatch] = []
    for plan in plans:
        try:
            tensors.append(build(plan))
        except ShapeMismatch as mismatch:
            mismatches.append(mismatch)
            continue
        for model in plan.missing:
            missing[model.name].append(plan.name)
        if plan.method is None and not _all_equal(plan):
            differing[_warning_key(plan)].append(plan)
    for first, *others in differing.values():
        more = f", as are {len(others)} more of its kind in other layers" if others else ""
        findings.note(
            f"'{first.name}' is not merged, because {first.copied_because}, and differs between "
            f"models: copied from '{first.contributions[0].model.name}'{more}",
            code="differs",
        )
    if mismatches:
        raise _shapes_differ(mismatches, rows_remedy)
    for model_name, names in missing.items():
        those = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        listed = f"'{names[0]}'" + (" and others" if len(names) > 1 else "")
        findings.note(
            f"{those} missing in '{model_name}' and merged without it: {listed}", code="missing"
        )
    return tensors


def _warning_key(plan: TensorPlan) -> Hashable:
    """A key that is equal for copied tensors that differ only in their layer: one warning is enough
    for them."""
    kind = plan.name if plan.layer is None else plan.name.partition(f".{plan.layer}.")[2]
    return plan.copied_because, plan.contributions[0].model.name, kind


def _all_equal(plan: TensorPlan) -> bool:
    """Whether a copied tensor is equal to those passed over."""
    return all(_is_equal(plan.contributions[0], other) for other in plan.passed_over)


def _is_equal(one: Contribution, other: Contribution) -> bool:
    """Whether two copied tensors are equal; results of an earlier stage count as equal."""
    first, second = (item.model.stored(item.tensor) for item in (one, other))
    if first is None or second is None:
        return first is second
    return equal_bytes(first.entry, second.entry)


def _shapes_differ(mismatches: Sequence[ShapeMismatch], rows_remedy: str) -> CheckpointError:
    """One error for all tensors whose shapes differ, with remedies."""

    def shapes(mismatch: ShapeMismatch) -> str:
        found = dict.fromkeys(
            f"{'x'.join(map(str, item.model.shape(item.tensor))) or 'one number'} "
            f"in '{item.model.name}'"
            for item in mismatch.inputs
        )
        return f"'{mismatch.tensor}' ({', '.join(found)})"

    def rows_only(mismatch: ShapeMismatch) -> bool:
        found = [item.model.shape(item.tensor) for item in mismatch.inputs]
        return all(len(s) == 2 and s[1] == found[0][1] for s in found) and all(
            item.layer is None for item in mismatch.inputs
        )

    shown = "; ".join(shapes(mismatch) for mismatch in mismatches[:4])
    more = f"; and {len(mismatches) - 4} more" if len(mismatches) > 4 else ""
    if rows_remedy and all(rows_only(mismatch) for mismatch in mismatches):
        return CheckpointError(f"vocabularies differ: {shown}{more}", remedy=rows_remedy)
    return CheckpointError(
        f"shapes differ in {len(mismatches)} tensors: {shown}{more}",
        remedy="only models of one architecture and size can be merged",
    )
