"""The changes that adapters make to each module of a model; checks that they can be combined."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.methods.adapters.combinations import Combination, Combined
from mergeloom.planners.models.adapter import Adapter
from mergeloom.planners.models.module_changes import LowRankProduct, ModuleChange
from mergeloom.planners.models.sameness import equal_bytes

PREFIX = "base_model.model."
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Factors:
    """The change (scale·up·down) of one module by the adapter at ``position`` in the document."""

    position: int
    adapter: Adapter
    product: LowRankProduct


@dataclass(frozen=True)
class ReplacementTensor:
    """A tensor of ``adapter`` that replaces the model's, instead of being added to it."""

    name: str
    adapter: Adapter
    stored: StoredTensor


@dataclass(frozen=True)
class AdaptedModule:
    """One module with the changes by all adapters; those of an ``embedding`` have names of their
    own."""

    name: str
    factors: tuple[Factors, ...]
    embedding: bool

    def tensor(self, up: bool) -> str:
        """The name of a factor's tensor in the output."""
        letter = "B" if up else "A"
        own = f"lora_embedding_{letter}" if self.embedding else f"lora_{letter}.weight"
        return f"{PREFIX}{self.name}.{own}"

    @property
    def bias(self) -> str:
        """The name of the output tensor that is added to the module's bias."""
        return f"{PREFIX}{self.name}.lora_B.bias"

    @property
    def rows(self) -> int:
        return self.factors[0].product.up.shape[0]

    @property
    def inside(self) -> tuple[int, ...]:
        """The shape of a factor A without its rank."""
        return self.factors[0].product.down.shape[1:]

    @property
    def columns(self) -> int:
        return math.prod(self.inside)

    @property
    def layer(self) -> int | None:
        """The number of its layer, which is the first number in its name."""
        found = _NUMBER.search(self.name)
        return int(found[1]) if found is not None else None

    @property
    def stem(self) -> str:
        """The part of its tensor names before the number of the layer; empty if there is none."""
        found = _NUMBER.search(self.name)
        return PREFIX + self.name[: found.start(1)] if found is not None else ""


def adapted_modules(adapters: Sequence[Adapter], kind: Combination) -> list[AdaptedModule]:
    """The modules changed by any of ``adapters``, in order.

    Raises:
        CheckpointError: the changes of a module are incompatible, or not supported by ``kind``.
    """
    found: dict[str, list[Factors]] = {}
    for position, adapter in enumerate(adapters):
        peft_type = adapter.checkpoint.config.get("peft_type")
        if peft_type != "LORA":
            raise CheckpointError(
                f"'{adapter.name}' is an adapter of the kind {peft_type or 'MLX'}, and only LoRA "
                "of peft can be combined",
                remedy=f"merge it into its model, as MODEL+{adapter.name}",
            )
        if adapter.of_parameters:
            module = next(iter(adapter.of_parameters))
            raise CheckpointError(
                f"'{adapter.name}' changes parameters of '{module}' (target_parameters), whose "
                "factors are those of several experts and cannot be combined",
                remedy=f"merge it into its model, as MODEL+{adapter.name}",
            )
        for name, change in adapter.changes.items():
            if change.product is not None:
                _check(adapter, name, change, change.product, kind)
                own = Factors(position, adapter, change.product)
                found.setdefault(name, []).append(own)
    modules = []
    for name, factors in found.items():
        embedding = [_is_embedding(each) for each in factors]
        _check_shapes(name, factors, embedding, kind)
        modules.append(AdaptedModule(name, tuple(factors), embedding[0]))
    return modules


def replacement_tensors(adapters: Sequence[Adapter]) -> Iterator[ReplacementTensor]:
    """The tensors that replace tensors or rows of the model; these are not combined.

    Raises:
        CheckpointError: several adapters have different tensors for one name.
    """
    found: dict[str, tuple[ReplacementTensor, object]] = {}
    for adapter in adapters:
        names = {id(stored): name for name, stored in adapter.checkpoint.tensors.items()}
        for change in adapter.changes.values():
            whole = [(stored, None) for stored in change.replaced.values()]
            rows = [(change.rows.rows, change.rows.indices)] if change.rows is not None else []
            for stored, about in (*whole, *rows):
                name = names[id(stored)]
                first, other = found.setdefault(
                    name, (ReplacementTensor(name, adapter, stored), about)
                )
                same = first.stored is stored or equal_bytes(first.stored, stored)
                if not same or other != about:
                    raise CheckpointError(
                        f"'{first.adapter.name}' and '{adapter.name}' both replace '{name}' "
                        "of the model, with different weights, which cannot be combined",
                        remedy="merge both adapters into models, and those with each other",
                    )
    yield from (each for each, _ in found.values())


def _is_embedding(factors: Factors) -> bool:
    tensors = factors.adapter.checkpoint.tensors
    name = next(name for name, stored in tensors.items() if stored is factors.product.down)
    return ".lora_embedding_" in name


def _check(
    adapter: Adapter, name: str, change: ModuleChange, product: LowRankProduct, kind: Combination
) -> None:
    """Check that a product can be combined with others.

    Raises:
        CheckpointError: it cannot.
    """
    if product.lengths is not None:
        raise CheckpointError(
            f"'{adapter.name}' is a DoRA adapter: its row lengths belong to the whole "
            "weight and cannot be combined",
            remedy=f"merge it into its model, as MODEL+{adapter.name}",
        )
    if product.bias is not None and kind.what is not Combined.SIDE_BY_SIDE and kind.name != "svd":
        raise CheckpointError(
            f"'{adapter.name}' adds a bias to '{name}' (lora_bias), which '{kind.name}' cannot "
            "combine",
            remedy="'cat' and 'svd' can",
        )


def _check_shapes(
    name: str, factors: Sequence[Factors], embedding: Sequence[bool], kind: Combination
) -> None:
    first = factors[0]
    for other, own in zip(factors[1:], embedding[1:], strict=True):
        sizes = [(each.product.up.shape[0], each.product.down.shape[1:]) for each in (first, other)]
        if sizes[0] != sizes[1] or own != embedding[0]:
            shapes = " and ".join(
                f"{rows}x{'x'.join(map(str, inside))} in '{each.adapter.name}'"
                for (rows, inside), each in zip(sizes, (first, other), strict=True)
            )
            raise CheckpointError(
                f"'{name}' is a weight of {shapes}",
                remedy="only adapters of one model can be combined",
            )
        ranks = [each.product.rank for each in (first, other)]
        if kind.what is Combined.FACTORS and ranks[0] != ranks[1]:
            raise CheckpointError(
                f"the ranks for '{name}' differ: {ranks[0]} in '{first.adapter.name}' and "
                f"{ranks[1]} in '{other.adapter.name}', and '{kind.name}' needs "
                "equal ranks",
                remedy="'cat', 'svd' and the kinds that end in '_svd' accept different ranks",
            )


def check_bases(adapters: Sequence[Adapter]) -> None:
    """Check that all adapters are for the same model.

    Raises:
        CheckpointError: they are for different models.
    """
    known = [adapter for adapter in adapters if adapter.base is not None]
    for other in known[1:]:
        if not _same_base(known[0].base or "", other.base or ""):
            raise CheckpointError(
                f"'{known[0].name}' is an adapter for '{known[0].base}', '{other.name}' for "
                f"'{other.base}'",
                remedy="if these are one model, write 'base_model: MODEL'",
            )


def _same_base(one: str, other: str) -> bool:
    """Whether two model names (hub ids or paths) are the same."""
    return LocalFolder(Path(one)).identity == LocalFolder(Path(other)).identity


def token_indices_setting(adapters: Sequence[Adapter]) -> Mapping[str, object]:
    """The setting of PEFT for rows that are replaced; empty if no adapter replaces rows."""
    for adapter in adapters:
        if any(change.rows is not None for change in adapter.changes.values()):
            key = "trainable_token_indices"
            return {key: adapter.checkpoint.config.get(key)}
    return {}
