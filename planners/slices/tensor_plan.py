"""Plans one output tensor from its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import CheckpointError, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.methods.declare import Base, Method
from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.config.parameters import Level, Resolution, Resolved, required
from mergeloom.planners.models.model import LateTensor, Model, OutputTensor
from mergeloom.planners.planner import Planning
from mergeloom.planners.slices.slices import Slice, TensorSources
from mergeloom.planners.tensors import (
    Contribution,
    Kernels,
    TensorPlan,
    check_shapes,
    constant,
    merge_inputs,
)


@dataclass(frozen=True, slots=True)
class MergingRules:
    """Rules for all tensors of one document."""

    document: MergeDocument
    method: Method
    truncate: bool
    """Whether embeddings of different lengths are truncated to their common leading rows."""


@dataclass(frozen=True, slots=True)
class SliceParameters:
    """The parameters of a slice: those of each source, and global settings."""

    sources: tuple[Resolution, ...]
    settings: Resolution

    @staticmethod
    def of(part: Slice, method: Method, levels: Sequence[Level]) -> SliceParameters:
        """``levels`` are the slice's, the module's and the global parameters."""
        sources = []
        for position, layers in enumerate(part.sources):
            if layers.source is not None:
                own = [Level("model", layers.source.parameters), *levels]
            else:  # an added base has no parameters, unless it is merged like the others
                own = [] if position == part.base else list(levels)
            sources.append(Resolution(method.model_parameters, own))
        return SliceParameters(tuple(sources), Resolution(method.settings, levels))


def plan_tensor(
    wanted: TensorSources,
    inputs: Sequence[tuple[int, str]],
    rules: MergingRules,
    parameters: SliceParameters,
) -> TensorPlan:
    """Plan how ``wanted`` is merged from its existing ``inputs``: (source position, name).

    Raises:
        ConfigError: a required parameter is missing, or a value is invalid.
        CheckpointError: the base lacks the tensor.
    """
    part, method = wanted.slice, rules.method
    missing: tuple[Model, ...] = ()
    if len(inputs) < len(part.sources):
        present = {position for position, _ in inputs}
        missing = tuple(s.model for i, s in enumerate(part.sources) if i not in present)
    if len(inputs) > 1 and method.base is Base.REQUIRED and part.base not in dict(inputs):
        base = part.sources[part.base or 0].model.name
        raise CheckpointError(
            f"'{wanted.name}' is in {len(inputs)} models, but not in the base model '{base}', "
            f"which '{method.name}' needs",
            place=part.entry.place,
        )
    first, name = inputs[0]
    kept_because = constant(part.sources[first].model, name)
    if kept_because is not None:
        return copy_tensor(wanted, inputs, kept_because)
    if len(inputs) == 1 and not method.merges_one:
        return copy_tensor(wanted, inputs, "only one model has it")
    contributions = []
    for position, name in inputs:
        resolved, lacking = parameters.sources[position].of(name, wanted.t)
        if lacking is not None and position != part.base:
            layers = part.sources[position]
            place = layers.source.place if layers.source is not None else part.entry.place
            filtered = parameters.sources[position].place(lacking)
            raise required(lacking, layers.model.name, name, place, filtered)
        contributions.append(_contribution(part, position, name, resolved))
    settings, lacking = parameters.settings.of(wanted.name, wanted.t)
    if lacking is not None:
        filtered = parameters.settings.place(lacking)
        raise required(lacking, None, wanted.name, part.entry.place, filtered)
    return TensorPlan(
        wanted.name, wanted.layer, method, tuple(contributions), settings, missing=missing
    )


def copy_tensor(
    wanted: TensorSources, inputs: Sequence[tuple[int, str]], reason: str
) -> TensorPlan:
    """Copy ``wanted`` from the base among ``inputs``, or from the first."""
    part = wanted.slice
    found = [_contribution(part, position, name, {}) for position, name in inputs]
    only = found.pop(_donor(inputs, part))
    present = {position for position, _ in inputs}
    missing = tuple(s.model for i, s in enumerate(part.sources) if i not in present)
    return TensorPlan(wanted.name, wanted.layer, None, (only,), {}, reason, tuple(found), missing)


def build_tensor(
    plan: TensorPlan,
    document: MergeDocument,
    planning: Planning,
    kernels: Kernels,
    truncate: bool = False,
) -> OutputTensor:
    """Build the output tensor for ``plan``; ``truncate`` cuts embeddings to their common rows.

    Its merge is late, if it computes, where ``planning`` is for the plans and not for a graph.

    Raises:
        Mismatch: shapes of the inputs differ.
        ConfigError: the parameters do not work together.
    """
    rows = _common_rows(plan) if truncate and plan.layer is None else None

    def merge() -> Merge:
        inputs = [
            item.model.node(planning.builder, item.tensor, rows) for item in plan.contributions
        ]
        check_shapes(plan, [node.shape for node in inputs])
        return merge_inputs(plan, inputs, planning.builder, kernels)

    dtype = output_dtype(plan, document)
    if planning.keeps_plans and plan.method is not None and rows is None:
        shapes = [item.model.shape(item.tensor) for item in plan.contributions]
        check_shapes(plan, shapes)
        kernel = kernels.of(plan, plan.method, shapes[0])
        if not isinstance(kernel, Copy):
            return LateTensor(plan.name, kernel.output_shape(shapes, ()), dtype, merge)
    return OutputTensor(plan.name, merge(), dtype)


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
        if high == 1 and others == 2 and part.base is not None and _is_added(part):
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


def _contribution(
    part: Slice, position: int, name: str, parameters: Mapping[str, Resolved]
) -> Contribution:
    source = part.sources[position]
    return Contribution(source.model, name, source.tower.prefix, position == part.base, parameters)


def _is_added(part: Slice) -> bool:
    """Whether the base is a source only because it is the base."""
    return part.base is not None and part.sources[part.base].source is None


def _donor(inputs: Sequence[tuple[int, str]], part: Slice) -> int:
    """Index of the base among the inputs, or 0."""
    return next((i for i, (position, _) in enumerate(inputs) if position == part.base), 0)


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
    own = next((item for item in plan.contributions if item.is_base), plan.contributions[0])
    dtype = own.model.dtype(own.tensor)
    if constant(own.model, own.tensor) is not None:
        return dtype
    return document.out_dtype or document.dtype or dtype
