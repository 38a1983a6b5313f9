"""Plans one output tensor from its inputs."""

from __future__ import annotations

import sys
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from functools import partial

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import CheckpointError, Place
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.graph import Load, Merge
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods.declare import Base, Method
from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.config.parameters import (
    Level,
    ParameterResolver,
    ResolvedValue,
    missing_value_error,
)
from mergeloom.planners.models.model import LazyTensor, Model, OutputTensor
from mergeloom.planners.planner import PlanningContext
from mergeloom.planners.slices.slices import LayerTensors, Slice, TensorSources
from mergeloom.planners.tensors import (
    AlikePlan,
    Contribution,
    Kernels,
    TensorPlan,
    check_shapes,
    reason_not_merged,
)


@dataclass(frozen=True, slots=True)
class MergingRules:
    """Rules for all tensors of one document."""

    document: MergeDocument
    method: Method
    truncate: bool
    """Whether embeddings of different lengths are truncated to their common leading rows."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """What merged tensors of one kind share: their sources, and all parameters.

    ``sources`` are the arguments of a `Contribution` except for the tensor's name.
    """

    sources: tuple[tuple[Model, str, bool, Mapping[str, ResolvedValue]], ...]
    settings: Mapping[str, ResolvedValue]
    missing: tuple[Model, ...]


@record(frozen=True, slots=True)
class _LayerPlan:
    """The ``plan`` of one tensor in the first layer of a kind; in every layer of the kind, its name
    ends with ``suffix`` and it is from the sources at ``positions``, that of a copy first."""

    suffix: str
    positions: tuple[int, ...]
    plan: TensorPlan


class SliceRules:
    """Plans the tensors of a slice.

    Tensors that differ only in their names, such as a layer's experts, are of one kind, and the
    decisions for a kind are made once.
    """

    def __init__(self, part: Slice, rules: MergingRules, levels: Sequence[Level]) -> None:
        """``levels`` are the slice's, the module's and the global parameters."""
        method = rules.method
        self._part, self._method = part, method
        self._sources = []
        for position, layers in enumerate(part.sources):
            if layers.source is not None:
                own = [Level("model", layers.source.parameters), *levels]
            else:  # an added base has no parameters, unless it is merged like the others
                own = [] if position == part.base else list(levels)
            self._sources.append(ParameterResolver(method.model_parameters, own))
        self._settings = ParameterResolver(method.settings, levels)
        self._varies = any(each.varies for each in (*self._sources, self._settings))
        self._kinds: dict[Hashable, _Kind] = {}
        self._layers: dict[int, list[_LayerPlan]] = {}
        """The plans of the first layer of each kind, which those of the others are like."""

    def plan(self, wanted: TensorSources) -> TensorPlan:
        """Plan how ``wanted`` is merged from its inputs.

        Raises:
            ConfigError: a required parameter is missing, or a value is invalid.
            CheckpointError: the base lacks the tensor.
        """
        if self._varies:
            pairs = zip(wanted.positions, wanted.names, strict=True)
            values = [self._sources[position].key(name, wanted.t) for position, name in pairs]
            settings = self._settings.key(wanted.name, wanted.t)
            return self._plan(wanted, (wanted.positions, settings, tuple(values)))
        return self._plan(wanted, wanted.positions)

    def plan_layer(self, layer: LayerTensors) -> Iterator[TensorPlan]:
        """Plan all tensors of a layer; as `plan`."""
        if self._varies:
            yield from map(self.plan, layer)
            return
        known = self._layers.get(layer.kind)
        if known is None:
            known = yield from self._first_layer(layer)
            self._layers[layer.kind] = known
            return
        number, root = layer.layer, layer.root
        same_names = layer.roots.count(root) == len(layer.roots)
        for each in known:
            if same_names:
                name = sys.intern(root + each.suffix)
                names = (name,) * len(each.positions)
            else:
                name, names = layer.names(each.suffix, each.positions)
            yield AlikePlan(name, number, each.plan, names)

    def _first_layer(self, layer: LayerTensors) -> Generator[TensorPlan, None, list[_LayerPlan]]:
        """Plan the tensors of the first layer of a kind."""
        known = []
        for wanted in layer:
            first = self._plan(wanted, wanted.positions)
            positions = wanted.positions if first.method is not None else _copied_first(wanted)
            suffix = wanted.name[len(layer.root) :]
            known.append(_LayerPlan(suffix, positions, first))
            _, names = layer.names(suffix, positions)
            yield AlikePlan(wanted.name, wanted.layer, first, names)
        return known

    def _plan(self, wanted: TensorSources, key: Hashable) -> TensorPlan:
        """Plan how ``wanted`` is merged; ``key`` is that of its kind."""
        positions, names = wanted.positions, wanted.names
        kind = self._kinds.get(key)
        reason = reason_not_merged(self._part.sources[positions[0]].model, names[0])
        if kind is None:
            self._check_base(wanted)
            if reason is None and len(positions) == 1:
                reason = self._copied_because(wanted)
        if reason is not None:
            return copy_tensor(wanted, reason)
        if kind is None:
            kind = self._kinds[key] = self._kind(wanted)
        return TensorPlan(
            wanted.name,
            wanted.layer,
            self._method,
            tuple(
                [
                    Contribution(model, name, prefix, is_base, own)
                    for (model, prefix, is_base, own), name in zip(kind.sources, names, strict=True)
                ]
            ),
            kind.settings,
            missing=kind.missing,
            kind=kind,
        )

    def _copied_because(self, wanted: TensorSources) -> str | None:
        """Why a tensor of one model is copied, or ``None`` if the method merges it alone."""
        if len(self._part.sources) > 1:
            return "only one model has it"
        _, lacking = self._sources[0].of(wanted.names[0], wanted.t)
        if self._method.merges_one and lacking is None:
            return None
        return "its slice has one model"

    def _check_base(self, wanted: TensorSources) -> None:
        part, method, count = self._part, self._method, len(wanted.positions)
        if count > 1 and method.base is Base.REQUIRED and part.base not in wanted.positions:
            base = part.sources[part.base or 0].model.name
            raise CheckpointError(
                f"'{wanted.name}' is in {count} models, but not in the base model '{base}', "
                f"which '{method.name}' needs",
                place=part.entry.place,
                remedy="name a base model that has it, or merge by a method without base",
            )

    def _kind(self, wanted: TensorSources) -> _Kind:
        part = self._part
        sources = []
        for position, name in zip(wanted.positions, wanted.names, strict=True):
            layers = part.sources[position]
            resolved, without_value = self._sources[position].of(name, wanted.t)
            if without_value is not None and position != part.base:
                place = layers.source.place if layers.source is not None else part.entry.place
                filtered = self._sources[position].place(without_value)
                raise missing_value_error(without_value, layers.model.name, name, place, filtered)
            is_base = position == part.base
            sources.append((layers.model, layers.tower.prefix, is_base, resolved))
        settings, without_value = self._settings.of(wanted.name, wanted.t)
        if without_value is not None:
            filtered = self._settings.place(without_value)
            raise missing_value_error(without_value, None, wanted.name, part.entry.place, filtered)
        return _Kind(tuple(sources), settings, _missing(wanted))


def copy_tensor(wanted: TensorSources, reason: str) -> TensorPlan:
    """Copy ``wanted`` from the base among its inputs, or from the first."""
    part = wanted.slice
    found = [
        Contribution(source.model, name, source.tower.prefix, position == part.base, {})
        for position, name in zip(wanted.positions, wanted.names, strict=True)
        for source in (part.sources[position],)
    ]
    only = found.pop(_place_of_copied(wanted))
    passed_over, missing = tuple(found), _missing(wanted)
    return TensorPlan(wanted.name, wanted.layer, None, (only,), {}, reason, passed_over, missing)


def _place_of_copied(wanted: TensorSources) -> int:
    """Which of the inputs of a tensor is copied: the base, or else the first."""
    base = wanted.slice.base
    return wanted.positions.index(base) if base in wanted.positions else 0


def _copied_first(wanted: TensorSources) -> tuple[int, ...]:
    """The positions of the sources of a tensor, first of that which is copied."""
    place, found = _place_of_copied(wanted), wanted.positions
    return (found[place], *found[:place], *found[place + 1 :])


def _missing(wanted: TensorSources) -> tuple[Model, ...]:
    """The models of a slice without a tensor."""
    sources = enumerate(wanted.slice.sources)
    return tuple(s.model for position, s in sources if position not in wanted.positions)


@dataclass(frozen=True, slots=True)
class _BuildPlan:
    """How the tensors with plans alike are built, of which ``plan`` is one: with the same dtype,
    shape, ``rows`` taken of their inputs and, unless it depends on the name, kernel."""

    plan: TensorPlan
    dtype: DType
    shape: tuple[int, ...]
    rows: range | None
    kernel: Kernel | None
    lazy: bool


class TensorBuilder:
    """Builds the output tensors of a document; what they have in common is decided once."""

    def __init__(
        self, document: MergeDocument, planning: PlanningContext, truncate: bool = False
    ) -> None:
        """``truncate`` cuts embeddings to their common rows."""
        self._document, self._planning, self._truncate = document, planning, truncate
        self._kernels = Kernels(planning.options.seed, document.method_place)
        self._plans: dict[int, _BuildPlan] = {}
        """By `id` of the plan that others are like, which they keep alive."""

    def __call__(self, plan: TensorPlan) -> OutputTensor:
        """Build the output tensor for ``plan``.

        Where plans are kept and no graph is wanted yet, a merge that computes is made on demand.

        Raises:
            ShapeMismatch: shapes of the inputs differ.
            ConfigError: the parameters do not work together.
        """
        build = self._plans.get(id(plan.like)) if isinstance(plan, AlikePlan) else None
        if build is None:
            build = self._plan_build(plan)
            if isinstance(plan, AlikePlan):
                self._plans[id(plan.like)] = build
        if build.lazy:
            merge = partial(self._merge, plan, build)
            return LazyTensor(plan.name, build.shape, build.dtype, merge)
        return OutputTensor(plan.name, self._merge(plan, build), build.dtype)

    def _plan_build(self, plan: TensorPlan) -> _BuildPlan:
        rows = _common_rows(plan) if self._truncate and plan.layer is None else None
        if rows is None:
            shapes = [item.model.shape(item.tensor) for item in plan.contributions]
        else:
            shapes = [node.shape for node in self._inputs(plan, rows)]
        check_shapes(plan, shapes)
        dtype = output_dtype(plan, self._document)
        if plan.method is None:
            return _BuildPlan(plan, dtype, shapes[0], rows, Copy(), False)
        kernel = self._kernels.of(plan, plan.method, shapes[0])
        lazy = self._planning.keeps_plans and rows is None and not isinstance(kernel, Copy)
        shape = kernel.output_shape(shapes, ())
        return _BuildPlan(plan, dtype, shape, rows, None if plan.method.by_name else kernel, lazy)

    def _merge(self, plan: TensorPlan, build: _BuildPlan) -> Merge:
        """The merge (or copy) of the inputs by the method of ``plan``."""
        inputs, kernel = self._inputs(plan, build.rows), build.kernel
        if kernel is None:
            assert plan.method is not None
            kernel = self._kernels.of(plan, plan.method, inputs[0].shape)
        return self._planning.builder.merge(inputs, kernel, plan.name)

    def _inputs(self, plan: TensorPlan, rows: range | None) -> list[Load | Merge]:
        builder = self._planning.builder
        if isinstance(plan, AlikePlan):
            pairs = zip(plan.like.contributions, plan.names, strict=False)  # not those passed over
            return [item.model.node(builder, name, rows) for item, name in pairs]
        return [item.model.node(builder, item.tensor, rows) for item in plan.contributions]


def check_models(method: Method, part: Slice, place: Place) -> None:
    """Check that a slice has the number of models its method needs, and a base if required.

    Raises:
        ConfigError: it does not.
    """
    others = len(part.sources) - (part.base is not None)
    if method.base is Base.REQUIRED and part.base is None:
        raise place.error(
            f"'{method.name}' needs a base model", "write 'base_model: MODEL' at the top level"
        )
    low, high = method.minimum, method.maximum
    if not others and low == 1 and high is None:
        return  # the base is copied
    if others < low or (high is not None and others > high):
        wanted = (
            f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        )
        beside = ""
        if part.base is not None:
            beside = f" beside the base model '{part.sources[part.base].model.name}'"
        models = "model" if wanted == "1" else "models"
        remedy = ""
        if high is not None and others > high:
            remedy = "remove some, or choose a method that merges more: linear, karcher, multislerp"
        if high == 1 and others == 2 and part.base is not None and _is_automatic(part):
            first, second = (s.model.name for i, s in enumerate(part.sources) if i != part.base)
            remedy = (
                f"to merge '{first}' with '{second}', write 'base_model: {first}', which is then "
                "one of the two"
            )
        raise place.error(
            f"'{method.name}' merges {wanted} {models}{beside}, "
            f"here {'is' if others == 1 else 'are'} {others}",
            remedy,
        )


def _is_automatic(part: Slice) -> bool:
    """Whether the base is a source only because it is the base."""
    return part.base is not None and part.sources[part.base].source is None


def _common_rows(plan: TensorPlan) -> range | None:
    """The leading rows common to all inputs, if they differ only in rows."""
    shapes = [item.model.shape(item.tensor) for item in plan.contributions]
    only_rows = all(len(s) == 2 and s[1:] == shapes[0][1:] for s in shapes)
    if only_rows and len(set(shapes)) > 1:
        return range(min(shape[0] for shape in shapes))
    return None


def output_dtype(plan: TensorPlan, document: MergeDocument) -> DType:
    """The dtype of an output tensor.

    Integers and constants keep theirs; without `dtype` and `out_dtype`, it is that of the base or
    the first input.
    """
    own = plan.contributions[0]
    for item in plan.contributions:
        if item.is_base:
            own = item
            break
    dtype = own.model.dtype(own.tensor)
    wanted = document.out_dtype or document.dtype or dtype
    if wanted is dtype or reason_not_merged(own.model, own.tensor) is not None:
        return dtype
    return wanted
