"""Adapters of parameters: LoRA on experts that a class has in one tensor (``target_parameters``).

For a parameter of n experts, (n, out, in), PEFT has A (n·r, in), with the rows of one expert after
those of another, and B (out, r·n), whose columns are those of the experts in turn. Expert e gets
s·Bₑ·Aₑ. Where a class stores experts as (n, in, out), and in adapters made by peft before 0.19, the
two are exchanged: A is (n·r, out), B is (in, r·n), and the expert gets s·(Bₑ·Aₑ)ᵀ. A parameter of
two dimensions is one expert.

A checkpoint may store the experts one by one, with the gate and the up projection apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import permutations

from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.planners.models.adapter import Adapter
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.module_changes import FactorPair
from mergeloom.planners.models.peft_settings import WITH_PEFT

Shape = tuple[int, ...]

_STORED_APART: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
}
"""Parameters of experts in the classes of transformers 5, and the modules of one expert whose
weights are their rows, in checkpoints."""

_STORED_BESIDE = {"gate_up_proj": "input_linear.weight", "down_proj": "output_linear.weight"}
"""The same of experts that are stored in one tensor of the module around them (GraniteMoE)."""

_TWO_LAYOUTS = {"aria", "gpt_oss", "openai_privacy_filter", "qwen3_vl_moe", "qwen3_vl_moe_text"}
"""Model types whose experts are stored as (n, in, out), and for which the layout of factors depends
on the versions of both peft and transformers."""


@dataclass(frozen=True)
class ExpertProduct:
    """``scale``·Bₑ·Aₑ for each of ``experts``, or if ``exchanged`` its transpose.

    Of a single ``expert``, the change is that of the rows from ``first`` on of its matrix.
    """

    factors: FactorPair
    experts: int
    rank: int
    scale: float
    exchanged: bool
    expert: int | None = None
    first: int = 0

    def arranged(self, builder: GraphBuilder, name: str) -> tuple[StoredTensor, StoredTensor]:
        """The factors (experts, rank, in) and (experts, out, rank) for the tensor as stored."""
        a, b, n, r = self.factors.down, self.factors.up, self.experts, self.rank
        if not self.exchanged:
            up = self._transposed(builder, b, (b.shape[0] * r, n), name)
            return a.reshape((n, r, a.shape[1])), up.reshape((n, b.shape[0], r))
        down = self._transposed(builder, b, b.shape, name)
        order = [place * n + expert for expert in range(n) for place in range(r)]
        up = self._transposed(builder, a, (n, r, a.shape[1]), name)
        return down.rows(order).reshape((n, r, b.shape[0])), up

    def _transposed(
        self, builder: GraphBuilder, stored: StoredTensor, shape: Shape, name: str
    ) -> StoredTensor:
        """Matrices of ``shape`` transposed; computed once, since the reader would move each element
        on its own."""
        load = builder.load_bytes(stored.bytes, stored.dtype, shape, name)
        turned = builder.spill(builder.merge([load], Transpose(), name))
        return StoredTensor(turned.bytes, F32, turned.shape)


@dataclass(frozen=True)
class _Place:
    """A parameter as the class has it, (n, out, in) or (out, in), with its complete name, and the
    tensors that store it: for each, its expert and its first row."""

    name: str
    shape: Shape
    stored: tuple[tuple[str, int | None, int], ...]

    @property
    def experts(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1


def experts_of(module: str) -> str | None:
    """The module of experts to which a module of the checkpoint belongs; ``None`` if to none."""
    outer, _, last = module.rpartition(".")
    if f"{last}.weight" in _STORED_BESIDE.values():
        return f"{outer}.experts"
    experts, _, number = outer.rpartition(".")
    return experts if number.isdigit() and experts.endswith("experts") else None


def parameter_changes(
    name: str, base: Model, adapter: Adapter, names: Mapping[str, str]
) -> Iterator[tuple[str, ExpertProduct]]:
    """The changed tensors of ``base`` and their changes; ``names`` are the modules of the base by
    those of the adapter.

    Raises:
        CheckpointError: the factors fit no parameter of a module, or may mean several things.
    """
    fitting = {
        module: tuple(_assignments(name, base, adapter, module, names[module]))
        for module in adapter.of_parameters
    }
    known = {found[0][1] for found in fitting.values() if len({each for _, each in found}) == 1}
    exchanged = next(iter(known)) if len(known) == 1 else None
    for module, found in fitting.items():
        if exchanged is None and len({each for _, each in found}) > 1:
            exchanged = _usual_layout(name, base, adapter, module)
        places = next((own for own, each in found if each in (exchanged, None)), found[0][0])
        chosen = next(each for own, each in found if own is places)
        for place, factors in zip(places, adapter.of_parameters[module], strict=True):
            yield from _changes(adapter, place, factors, bool(chosen))


def _assignments(
    name: str, base: Model, adapter: Adapter, module: str, stored: str
) -> Iterator[tuple[tuple[_Place, ...], bool | None]]:
    """The parameters that a module's factors may be of, innermost first, and whether these are
    exchanged; the most usual order first. ``None`` if that makes no difference.

    peft nests the parameters of a module in the order in which its class has them.
    """
    factors = adapter.of_parameters[module]
    places = list(_places(base, adapter, module, stored))
    if not places:
        wanted = ", ".join(f"'{each}'" for each in _targets(adapter, module))
        raise CheckpointError(
            f"'{name}': the adapter changes {wanted} of '{module}', which the model does not store "
            "in a known way",
            remedy=WITH_PEFT,
        )
    count, some = len(factors), False
    if count == len(places) <= 4:
        for exchanged in (False, True):
            for order in permutations(places):
                pairs = list(zip(order, factors, strict=True))
                if all(_fits(adapter, *pair, exchanged) for pair in pairs):
                    flat = all(len(place.shape) == 2 for place in order)
                    yield order, None if flat else exchanged
                    some = True
                    break
    if not some:
        shapes = "; ".join(
            f"{_text(each.down.shape)} and {_text(each.up.shape)}" for each in factors
        )
        of_model = ", ".join(f"'{place.name}' ({_text(place.shape)})" for place in places)
        raise CheckpointError(
            f"'{name}': the adapter's matrices for parameters of '{module}' ({shapes}) do not fit "
            f"the model's {of_model}",
            remedy="take the model that the adapter was made for",
        )


def _places(base: Model, adapter: Adapter, module: str, stored: str) -> Iterator[_Place]:
    targets = _targets(adapter, module)
    found = False
    for target in sorted(targets, key=lambda each: (each.startswith("down"), "bias" in each)):
        place = _place(base, module, stored, target)
        if place is not None:
            found = True
            yield place
    weight = f"{stored}.weight"
    if not found and weight in base:  # the module itself, which only a short target's name is of
        yield _Place(module, base.shape(weight), ((weight, None, 0),))


def _targets(adapter: Adapter, module: str) -> list[str]:
    """The parameters of a module that the adapter may change."""
    found = []
    for target in adapter.targets:
        owner, _, last = target.rpartition(".")
        if not owner or module == owner or module.endswith(f".{owner}"):
            found.append(last)
    return list(dict.fromkeys(found))


def _place(base: Model, module: str, stored: str, target: str) -> _Place | None:
    name = f"{module}.{target}"
    beside = f"{stored.rpartition('.')[0]}.{_STORED_BESIDE.get(target, '')}"
    for tensor in (f"{stored}.{target}", beside):
        if tensor in base:
            shape = base.shape(tensor)
            return _Place(name, shape, ((tensor, None, 0),)) if len(shape) in (2, 3) else None
    for parts in _STORED_APART.get(target, ()):
        found: list[tuple[str, int | None, int]] = []
        expert, rows, columns = 0, 0, 0
        while all(f"{stored}.{expert}.{part}.weight" in base for part in parts):
            rows = 0
            for part in parts:
                own = f"{stored}.{expert}.{part}.weight"
                found.append((own, expert, rows))
                rows, columns = rows + base.shape(own)[0], base.shape(own)[-1]
            expert += 1
        if found:
            return _Place(name, (expert, rows, columns), tuple(found))
    return None


def _fits(adapter: Adapter, place: _Place, factors: FactorPair, exchanged: bool) -> bool:
    width = place.experts * adapter.setting(place.name, "rank_pattern", "r")
    rows, columns = place.shape[-2:]
    if exchanged and len(place.shape) == 3:
        rows, columns = columns, rows
    return (*factors.down.shape, *factors.up.shape) == (width, columns, rows, width)


def _usual_layout(name: str, base: Model, adapter: Adapter, module: str) -> bool:
    """Whether square factors, which fit both ways, are exchanged, by the version of peft."""
    if base.config.get("model_type") in _TWO_LAYOUTS:
        raise CheckpointError(
            f"'{name}': the adapter changes square experts of '{module}' only, which it may change "
            "in two ways that depend on the version of transformers it was made with",
            remedy=WITH_PEFT,
        )
    version = re.match(r"(\d+)\.(\d+)", str(adapter.checkpoint.config.get("peft_version")))
    return version is None or (int(version[1]), int(version[2])) < (0, 19)


def _changes(
    adapter: Adapter, place: _Place, factors: FactorPair, exchanged: bool
) -> Iterator[tuple[str, ExpertProduct]]:
    rank = adapter.setting(place.name, "rank_pattern", "r")
    alpha = adapter.setting(place.name, "alpha_pattern", "lora_alpha")
    scale = alpha / (math.sqrt(rank) if adapter.checkpoint.config.get("use_rslora") else rank)
    for tensor, expert, first in place.stored:
        yield (
            tensor,
            ExpertProduct(
                *(factors, place.experts, int(rank), scale),
                exchanged=exchanged and len(place.shape) == 3,
                expert=expert,
                first=first,
            ),
        )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
