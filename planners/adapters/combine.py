"""Builds the tensors of an adapter combined from others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Merge
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.adapters.combinations import RANK, Combined
from mergeloom.methods.declare import REQUIRED, Parameter, TensorMerge
from mergeloom.methods.kernels.leading_factors import LeadingOfChanges
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.planners.adapters.document import AdapterEntry, AdaptersDocument
from mergeloom.planners.adapters.factors import leading_factors, load_stored, zeros
from mergeloom.planners.adapters.modules import AdaptedModule, Factors, ReplacementTensor
from mergeloom.planners.config.parameters import Level, ResolvedValue, missing_value_error, resolve
from mergeloom.planners.models.model import OutputTensor, StoredModel
from mergeloom.planners.tensors import Contribution, TensorPlan, parameter_values

NOT_COMBINED = "it replaces the model's"


@dataclass(frozen=True)
class AdapterBuilder:
    """Plans and builds the tensors of the output.

    ``models`` are the document's adapters as models, ``layers`` is the number of layers that
    gradients extend over, ``rank`` the highest rank of the adapters.
    """

    document: AdaptersDocument
    models: tuple[StoredModel, ...]
    seed: int
    layers: int
    rank: int

    def plans(
        self, modules: Sequence[AdaptedModule], others: Sequence[ReplacementTensor]
    ) -> Iterator[TensorPlan]:
        """The plan of each output tensor."""
        for module in modules:
            for up in (False, True):
                yield self.plan(module, up)
            if self.biases(module):
                yield self._plan(module, module.bias, self.biases(module), "bias")
        for other in others:
            yield self._copied(other)

    def plan(self, module: AdaptedModule, up: bool) -> TensorPlan:
        """The plan of one factor of a module."""
        return self._plan(module, module.tensor(up), module.factors, "up" if up else "down")

    def _plan(
        self, module: AdaptedModule, name: str, factors: Sequence[Factors], which: str
    ) -> TensorPlan:
        """The plan of a tensor combined from the attribute ``which`` of ``factors``.

        Raises:
            ConfigError: a parameter is missing or invalid.
        """
        kind = self.document.combination
        contributions = []
        for each in factors:
            model = self.models[each.position]
            own: StoredTensor = getattr(each.product, which)
            stored = next(n for n, found in model.checkpoint.tensors.items() if found is own)
            parameters = self._parameters(self.document.adapters[each.position], module)
            contributions.append(Contribution(model, stored, module.stem, False, parameters))
        levels = [Level("global", self.document.parameters)]
        settings = self._resolved(kind.settings, levels, module, "")
        absent = set(range(len(self.models))) - {f.position for f in factors}
        missing = tuple(self.models[position] for position in sorted(absent))
        return TensorPlan(
            *(name, module.layer, kind, tuple(contributions), settings), missing=missing
        )

    def _copied(self, other: ReplacementTensor) -> TensorPlan:
        model = next(m for m in self.models if m.checkpoint is other.adapter.checkpoint)
        only = Contribution(model, other.name, "", False, {})
        return TensorPlan(other.name, None, None, (only,), {}, NOT_COMBINED)

    def _parameters(self, entry: AdapterEntry, module: AdaptedModule) -> dict[str, ResolvedValue]:
        levels = [Level("model", entry.parameters), Level("global", self.document.parameters)]
        parameters = self.document.combination.model_parameters
        return self._resolved(parameters, levels, module, str(entry.adapter))

    def _resolved(
        self,
        parameters: Sequence[Parameter],
        levels: Sequence[Level],
        module: AdaptedModule,
        adapter: str,
    ) -> dict[str, ResolvedValue]:
        layer, count = module.layer or 0, self.layers
        t = layer / (count - 1) if count > 1 and module.layer is not None else 0.0
        found = {}
        for parameter in parameters:
            value = resolve(parameter, levels, module.name, t)
            if value is None and parameter.default is REQUIRED:
                raise missing_value_error(
                    parameter, adapter or None, module.name, self.document.place
                )
            found[parameter.name] = value or ResolvedValue(parameter.default, "default", None, None)
        return found

    def rank_of(self, module: AdaptedModule) -> int:
        """The rank of a module in the output."""
        ranks = [each.product.rank for each in module.factors]
        what = self.document.combination.what
        if what is Combined.SIDE_BY_SIDE:
            return sum(ranks)
        if what is Combined.FACTORS:
            return ranks[0]
        wanted = self.plan(module, up=False).settings[RANK.name].value or self.rank
        return min(int(wanted), module.rows, module.columns)

    def biases(self, module: AdaptedModule) -> tuple[Factors, ...]:
        """The factors that have a bias."""
        return tuple(each for each in module.factors if each.product.bias is not None)

    def build(
        self,
        builder: GraphBuilder,
        modules: Sequence[AdaptedModule],
        others: Sequence[ReplacementTensor],
    ) -> Iterator[OutputTensor]:
        """The tensors of the output."""
        for module in modules:
            dtype = self._dtype(module.factors[0].product.down)
            for up in (False, True):
                plan = self.plan(module, up)
                yield OutputTensor(plan.name, self._factor(builder, module, plan, up), dtype)
            biased = self.biases(module)
            if biased:
                loads, weights = [], []
                plan = self._plan(module, module.bias, biased, "bias")
                for each, item in zip(biased, plan.contributions, strict=True):
                    assert each.product.bias is not None
                    loads.append(load_stored(builder, each.product.bias, module.bias))
                    weights.append(item.parameters["weight"].value * each.product.scale)
                merge = builder.merge(loads, LinearCombination(tuple(weights)), module.bias)
                yield OutputTensor(module.bias, merge, dtype)
        for other in others:
            merge = builder.merge(
                [load_stored(builder, other.stored, other.name)], Copy(), other.name
            )
            kept = self._dtype(other.stored) if other.stored.dtype.floating else other.stored.dtype
            yield OutputTensor(other.name, merge, kept)

    def _dtype(self, stored: StoredTensor) -> DType:
        return self.document.dtype or stored.dtype

    def _factor(
        self, builder: GraphBuilder, module: AdaptedModule, plan: TensorPlan, up: bool
    ) -> Merge:
        what = self.document.combination.what
        given = [parameter_values(item.parameters) for item in plan.contributions]
        scales = [each.product.scale for each in module.factors]
        stored = [each.product.up if up else each.product.down for each in module.factors]
        if what is Combined.CHANGES:
            return self._leading(builder, module, plan, given, up)
        if what is Combined.SIDE_BY_SIDE:
            weights = [own["weight"] * by for own, by in zip(given, scales, strict=True)]
            inputs = [
                load_stored(builder, each, plan.name)
                for each in _padded_for_concatenation(stored, 1 if up else 0)
            ]
            kernel: Kernel = LinearCombination((1.0,) * len(weights) if up else tuple(weights))
            return builder.merge(inputs, kernel, plan.name)
        models = [
            own | {"weight": _factor_weight(own["weight"] * by, up)}
            for own, by in zip(given, scales, strict=True)
        ]
        inputs = [load_stored(builder, each, plan.name) for each in stored]
        kernel = self._kernel(plan, plan.name, stored[0].shape, models)
        return builder.merge(inputs, kernel, plan.name)

    def _kernel(
        self,
        plan: TensorPlan,
        name: str,
        shape: tuple[int, ...],
        models: Sequence[Mapping[str, Any]],
    ) -> Kernel:
        settings = parameter_values(plan.settings)
        merge = TensorMerge(name, shape, tuple(models), None, settings, self.seed)
        return self.document.combination.kernel(merge)

    def _leading(
        self,
        builder: GraphBuilder,
        module: AdaptedModule,
        plan: TensorPlan,
        given: Sequence[Mapping[str, Any]],
        up: bool,
    ) -> Merge:
        """A factor of the best approximation of the combined change."""
        kind, products = self.document.combination, [each.product for each in module.factors]
        rows, columns = module.rows, module.columns
        scales = [product.scale for product in products]
        combination = None
        if kind.draws or kind.drops_smallest:
            combination = self._kernel(plan, module.name, (rows, columns), given)
        else:
            scales = [by * own["weight"] for by, own in zip(scales, given, strict=True)]
        rank = self.rank_of(module)
        ranks = tuple(product.rank for product in products)
        kernel = LeadingOfChanges(rows, columns, rank, ranks, tuple(scales), combination)
        side = [*(product.down for product in products), *(product.up for product in products)]
        loads = [load_stored(builder, each, module.name) for each in side]
        factor = leading_factors(builder, kernel, loads, module.name)[up]
        ones = (1,) * (len(products[0].up.shape) - 2)
        shape = (rows, rank, *ones) if up else (rank, *module.inside)
        return builder.merge(
            [load_stored(builder, factor.reshape(shape), plan.name)], Copy(), plan.name
        )


def _factor_weight(weight: float, up: bool) -> float:
    """The coefficient of one factor; the product of both coefficients is ``weight``, and that of A
    has its sign."""
    return math.copysign(math.sqrt(abs(weight)), 1.0 if up else weight)


def _padded_for_concatenation(tensors: Sequence[StoredTensor], axis: int) -> Iterator[StoredTensor]:
    """Each tensor with zeros around it, at its position in the concatenation of all along ``axis``;
    zeros are not read."""
    sizes = [each.shape[axis] for each in tensors]
    for number, each in enumerate(tensors):
        before, after = sum(sizes[:number]), sum(sizes[number + 1 :])
        parts = []
        for size in (before, 0, after):
            shape = (*each.shape[:axis], size, *each.shape[axis + 1 :])
            parts.append(zeros(each, shape) if size else None)
        parts[1] = each
        yield StoredTensor.join([part for part in parts if part is not None], axis)
