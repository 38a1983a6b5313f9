"""One output tensor: from its recipe to the merge that makes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import CheckpointError, Place
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods.declare import Base, Method, ParameterError, TensorMerge
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.parameters import Level, Resolution, Resolved, required
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.roles import is_buffer
from mergeloom.planners.slices.slices import Recipe, Slice


@dataclass(frozen=True, slots=True)
class Contribution:
    """One input of one output tensor: ``tensor`` of ``model``, in layer ``layer`` there.

    ``parameters`` are the per-model ones, with their provenance.
    """

    model: Model
    tensor: str
    layer: int | None
    is_base: bool
    parameters: Mapping[str, Resolved]

    @property
    def stored_name(self) -> str:
        """The tensor's name where it is stored, which may be another than the planner calls it."""
        stored = self.model.stored(self.tensor)
        return stored.name if stored is not None else self.tensor


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one output tensor comes about, with every parameter and where it comes from.

    ``same_as`` is the output's tensor that this one is once more, under another name.
    ``method`` is ``None`` where the tensor is copied from its only contribution; ``passed_over``
    are then the inputs that should be equal to it. ``missing`` are the models without it.
    """

    name: str
    layer: int | None
    method: Method | None
    contributions: tuple[Contribution, ...]
    settings: Mapping[str, Resolved]
    copied_because: str | None = None
    passed_over: tuple[Contribution, ...] = ()
    missing: tuple[Model, ...] = ()
    same_as: str | None = None


class Mismatch(Exception):
    """Inputs of one tensor whose shapes differ; collected, and reported together."""

    def __init__(self, tensor: str, inputs: Sequence[Contribution]) -> None:
        super().__init__(tensor)
        self.tensor = tensor
        self.inputs = inputs


@dataclass(frozen=True, slots=True)
class MergingRules:
    """What holds for all tensors of one document."""

    document: Document
    method: Method
    seed: int
    truncate: bool
    """Whether embeddings of different lengths are cut to their common leading rows."""


@dataclass(frozen=True, slots=True)
class SliceParameters:
    """The parameters that hold in a slice: those of each source, and the document's settings."""

    sources: tuple[Resolution, ...]
    settings: Resolution

    @staticmethod
    def of(part: Slice, method: Method, levels: Sequence[Level]) -> SliceParameters:
        """``levels`` are the slice's, the module's and the global parameters."""
        sources = []
        for position, layers in enumerate(part.sources):
            if layers.source is not None:
                own = [Level("model", layers.source.parameters), *levels]
            else:  # a base that was added has no parameters, unless it is merged like the others
                own = [] if position == part.base else list(levels)
            sources.append(Resolution(method.model_parameters, own))
        return SliceParameters(tuple(sources), Resolution(method.settings, levels))


def plan_tensor(
    recipe: Recipe,
    inputs: Sequence[tuple[int, str]],
    rules: MergingRules,
    parameters: SliceParameters,
) -> TensorPlan:
    """Decide how ``recipe`` is merged from those ``inputs`` that exist: (source position, name).

    Raises:
        ConfigError: a required parameter has no value, or one is wrong.
        CheckpointError: the base lacks the tensor.
    """
    part, method = recipe.slice, rules.method
    missing: tuple[Model, ...] = ()
    if len(inputs) < len(part.sources):
        present = {position for position, _ in inputs}
        missing = tuple(s.model for i, s in enumerate(part.sources) if i not in present)
    if len(inputs) > 1 and method.base is Base.REQUIRED and part.base not in dict(inputs):
        base = part.sources[part.base or 0].model.name
        raise CheckpointError(
            f"'{recipe.name}' is in {len(inputs)} models and not in the base model '{base}', "
            f"which '{method.name}' starts from",
            place=part.entry.place,
        )
    first, name = inputs[0]
    constant = _constant(part.sources[first].model, name)
    if constant is not None:
        return copy_tensor(recipe, inputs, constant)
    if len(inputs) == 1 and not method.merges_one:
        return copy_tensor(recipe, inputs, "only one model has it")
    contributions = []
    for position, name in inputs:
        resolution = parameters.sources[position]
        resolved = resolution.of(name, recipe.t)
        lacking = resolution.lacking(resolved)
        if lacking is not None and position != part.base:
            layers = part.sources[position]
            place = layers.source.place if layers.source is not None else part.entry.place
            raise required(lacking, layers.model.name, name, place)
        contributions.append(_contribution(part, position, name, resolved))
    settings = parameters.settings.of(recipe.name, recipe.t)
    lacking = parameters.settings.lacking(settings)
    if lacking is not None:
        raise required(lacking, None, recipe.name, part.entry.place)
    return TensorPlan(
        recipe.name, recipe.layer, method, tuple(contributions), settings, missing=missing
    )


def copy_tensor(recipe: Recipe, inputs: Sequence[tuple[int, str]], reason: str) -> TensorPlan:
    """Copy ``recipe`` from the base among ``inputs``, or from the first."""
    part = recipe.slice
    found = [_contribution(part, position, name, {}) for position, name in inputs]
    only = found.pop(_donor(inputs, part))
    present = {position for position, _ in inputs}
    missing = tuple(s.model for i, s in enumerate(part.sources) if i not in present)
    return TensorPlan(recipe.name, recipe.layer, None, (only,), {}, reason, tuple(found), missing)


def _constant(model: Model, tensor: str) -> str | None:
    """Why a tensor is copied whatever the method: it is no weight."""
    if not model.dtype(tensor).floating:
        return "it holds integers"
    if is_buffer(tensor, model.shape(tensor)):
        return "it is a constant, not a weight"
    return None


class Kernels:
    """The kernels of one document: one for all tensors of a shape and of the same parameters, where
    the method does not go by names."""

    def __init__(self, rules: MergingRules) -> None:
        self.rules = rules
        self._made: dict[Hashable, tuple[Kernel, TensorPlan]] = {}
        """By shape, position of the base and the identities of parameters, which the plans keep."""

    def of(self, plan: TensorPlan, method: Method, shape: tuple[int, ...]) -> Kernel:
        """The kernel of a tensor whose inputs have this shape.

        Raises:
            ConfigError: the parameters do not work together.
        """
        if method.by_name:
            return self._make(plan, method, shape)
        own = [(id(item.parameters), item.is_base) for item in plan.contributions]
        key = (shape, id(plan.settings), *own)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(plan, method, shape), plan
        return found[0]

    def _make(self, plan: TensorPlan, method: Method, shape: tuple[int, ...]) -> Kernel:
        try:
            return method.kernel(tensor_merge(plan, self.rules, shape))
        except ParameterError as error:
            place = self.rules.document.method_place
            raise place.error(f"tensor '{plan.name}': {error.cause}", error.remedy) from error


def build_merge(plan: TensorPlan, builder: GraphBuilder, kernels: Kernels) -> Merge:
    """The merge that carries out ``plan``.

    Raises:
        Mismatch: shapes of the inputs differ.
        ConfigError: the parameters do not work together.
    """
    rows = _common_rows(plan, kernels.rules.truncate)
    inputs: list[Load | Merge] = [
        contribution.model.node(builder, contribution.tensor, rows)
        for contribution in plan.contributions
    ]
    if plan.method is None:
        return builder.merge(inputs, Copy(), plan.name)
    return builder.merge(inputs, kernels.of(plan, plan.method, inputs[0].shape), plan.name)


def tensor_merge(plan: TensorPlan, rules: MergingRules, shape: tuple[int, ...]) -> TensorMerge:
    """What the method of ``plan`` is asked."""
    return TensorMerge(
        tensor=plan.same_as or plan.name,
        shape=shape,
        models=tuple(_values(item.parameters) for item in plan.contributions),
        base=next((i for i, item in enumerate(plan.contributions) if item.is_base), None),
        settings=_values(plan.settings),
        seed=rules.seed,
    )


def check_models(method: Method, part: Slice, place: Place) -> None:
    """Check that a slice has as many models as its method needs, and a base where it needs one.

    Raises:
        ConfigError: it has not.
    """
    others = len(part.sources) - (part.base is not None)
    if method.base is Base.REQUIRED and part.base is None:
        raise place.error(
            f"'{method.name}' needs a base model", "write 'base_model: MODEL' at the top level"
        )
    low, high = method.minimum, method.maximum
    if others < low or (high is not None and others > high):
        wanted = (
            f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        )
        beside = ""
        if part.base is not None:
            beside = f" beside the base model '{part.sources[part.base].model.name}'"
        models = "model" if wanted == "1" else "models"
        remedy = ""
        if high == 1 and others == 2 and part.base is not None:
            first, second = (s.model.name for i, s in enumerate(part.sources) if i != part.base)
            remedy = (
                f"to merge '{first}' with '{second}', write 'base_model: {first}', which is then "
                "one of the two"
            )
        raise place.error(
            f"'{method.name}' merges {wanted} {models}{beside}, here are {others}", remedy
        )


def _contribution(
    part: Slice, position: int, name: str, parameters: Mapping[str, Resolved]
) -> Contribution:
    source = part.sources[position]
    layer = None
    if name.startswith(source.tower.prefix) and source.tower.prefix:
        number = name[len(source.tower.prefix) :].partition(".")[0]
        layer = int(number) if number.isdigit() else None
    return Contribution(source.model, name, layer, position == part.base, parameters)


def _values(resolved: Mapping[str, Resolved]) -> dict[str, Any]:
    return {name: item.value for name, item in resolved.items()}


def _donor(inputs: Sequence[tuple[int, str]], part: Slice) -> int:
    """Index of the base among the inputs, or of the first."""
    return next((i for i, (position, _) in enumerate(inputs) if position == part.base), 0)


def _common_rows(plan: TensorPlan, truncate: bool) -> range | None:
    shapes = [item.model.shape(item.tensor) for item in plan.contributions]
    if all(shape == shapes[0] for shape in shapes):
        return None
    only_rows_differ = all(len(s) == 2 and s[1:] == shapes[0][1:] for s in shapes)
    if truncate and only_rows_differ and plan.layer is None:
        return range(min(shape[0] for shape in shapes))
    raise Mismatch(plan.name, plan.contributions)


def output_dtype(plan: TensorPlan, document: Document) -> DType:
    """The type that a tensor is written in.

    Integers and constants keep theirs; without `dtype` and `out_dtype` a tensor has its base's, or
    its first input's, type.
    """
    own = next((item for item in plan.contributions if item.is_base), plan.contributions[0])
    dtype = own.model.dtype(own.tensor)
    if _constant(own.model, own.tensor) is not None:
        return dtype
    return document.out_dtype or document.dtype or dtype
