"""A model with an adapter applied to its tensors.

No result is stored: a changed tensor is computed from the model's tensor when it is needed, so a
model with several adapters is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.dtypes import F32, U8, DType
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.inputs.low_rank import LowRank
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.planners.models.adapted_names import module_names
from mergeloom.planners.models.adapted_parameters import (
    ExpertProduct,
    experts_of,
    parameter_changes,
)
from mergeloom.planners.models.adapter import Adapter
from mergeloom.planners.models.architecture import Architecture, infer_architecture
from mergeloom.planners.models.model import Model, TensorLocation
from mergeloom.planners.models.module_changes import LowRankProduct, ModuleChange, ReplacedRows
from mergeloom.planners.models.peft_settings import WITH_PEFT
from mergeloom.planners.models.rows import stored_rows
from mergeloom.planners.models.tied_heads import head_module, untied_tensors
from mergeloom.planners.models.token_weights import Head, TokenWeights

Shape = tuple[int, ...]
_ONE = MemorySource(b"\x00\x00\x80\x3f", "the number 1")


@dataclass(frozen=True)
class TensorChange:
    """The change of one tensor: it is ``replaced``, then rows of it are, then a product is added.

    ``bias`` is added with a factor.
    """

    replaced: StoredTensor | None = None
    rows: ReplacedRows | None = None
    product: LowRankProduct | ExpertProduct | None = None
    bias: tuple[StoredTensor, float] | None = None


@dataclass(frozen=True)
class AdaptedModel:
    """``base`` with ``adapter``; ``changes`` are keyed by tensor.

    ``untied`` are the tensors of the output head, and the base's tensors they are computed from,
    if the base ties it to the embedding and the adapter changes only one of them, so that the
    result has both; the head's weight is first.
    """

    name: str
    base: Model
    adapter: Adapter
    changes: Mapping[str, TensorChange]
    untied: Mapping[str, str]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        changed = dict(self.base.config)
        if self.untied:
            changed["tie_word_embeddings"] = False
            inner = changed.get("text_config")
            if isinstance(inner, Mapping) and "tie_word_embeddings" in inner:
                changed["text_config"] = {**inner, "tie_word_embeddings": False}
        embedding = self.base.tokens.embedding
        if embedding is not None:
            before, after = self.base.shape(embedding)[0], self.shape(embedding)[0]
            if before != after and changed.get("vocab_size") == before:
                changed["vocab_size"] = after
        return changed

    @cached_property
    def architecture(self) -> Architecture:
        return infer_architecture({tensor: self.shape(tensor) for tensor in self}, self.config)

    @cached_property
    def tokens(self) -> TokenWeights:
        """Those of the base, untied if the adapter changes only the embedding or only the head."""
        found = self.base.tokens
        names = [*([found.embedding] if found.embedding is not None else []), *found.equal_weights]
        changed = any(name in self.changes for name in names)
        equal_weights: frozenset[str] = frozenset() if changed else found.equal_weights
        if self.untied:
            return TokenWeights(found.embedding, next(iter(self.untied)), Head.OWN, equal_weights)
        kind = Head.OWN if changed and found.head in found.equal_weights else found.kind
        return TokenWeights(found.embedding, found.head, kind, equal_weights)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.base or tensor in self.untied

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from self.untied

    def stored(self, tensor: str) -> TensorLocation | None:
        if tensor in self.untied or tensor in self.changes:
            return None
        return self.base.stored(tensor)

    def shape(self, tensor: str) -> Shape:
        replaced = self._replacement(tensor)
        return self.base.shape(self._base_tensor(tensor)) if replaced is None else replaced.shape

    def dtype(self, tensor: str) -> DType:
        return self.base.dtype(self._base_tensor(tensor))

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        change = self.changes.get(tensor)
        replaced = self._replacement(tensor)
        if replaced is not None:
            node: Load | Merge = _load(builder, stored_rows(replaced, rows), tensor)
        else:
            node = self.base.node(builder, self._base_tensor(tensor), rows)
        if change is None:
            return node
        if change.bias is not None:
            stored, scale = change.bias
            node = _add_bias(builder, node, stored_rows(stored, rows), scale, tensor)
        if change.rows is not None:
            numbers = range(node.shape[0]) if rows is None else rows
            node = _replace_rows(builder, node, change.rows, numbers, tensor)
        if isinstance(change.product, ExpertProduct):
            return _add_expert_product(builder, node, change.product, tensor, rows)
        if change.product is not None:
            node = _add_product(builder, node, change.product, tensor, rows)
        return node

    def _base_tensor(self, tensor: str) -> str:
        """The tensor of the base that ``tensor`` is computed from."""
        return self.untied.get(tensor, tensor)

    def _replacement(self, tensor: str) -> StoredTensor | None:
        change = self.changes.get(tensor)
        return None if change is None else change.replaced


_OTHER_MODEL = "take the model that the adapter was made for"


def apply_adapter(name: str, base: Model, adapter: Adapter) -> AdaptedModel:
    """Apply ``adapter`` to ``base``; the result is called ``name``.

    Raises:
        CheckpointError: the adapter changes modules the model does not have, or does not fit.
    """
    tokens = base.tokens
    embedding = tokens.embedding
    modules = {tensor.rpartition(".")[0] for tensor in base}
    head = head_module(base.config, modules)
    untied: Mapping[str, str] = {}
    if tokens.kind is Head.TIED and tokens.head is None and embedding is not None:
        untied = untied_tensors(head, embedding, set(base))
        modules.add(head)
    modules |= {each for each in map(experts_of, modules) if each is not None}
    names = _names(name, base, adapter, modules)
    changes: dict[str, TensorChange] = {}
    for module, change in adapter.changes.items():
        changes |= _changes(names[module], change)
    for tensor, product in parameter_changes(name, base, adapter, names):
        changes[tensor] = TensorChange(product=product)
    if not any(
        tensor in changes and changes[tensor].rows is None for tensor in (embedding, *untied)
    ):
        untied = {}
    model = AdaptedModel(name, base, adapter, changes, untied)
    for tensor, tensor_change in changes.items():
        _check(model, tensor, tensor_change)
    return model


def _names(name: str, base: Model, adapter: Adapter, modules: set[str]) -> dict[str, str]:
    """The model's name of each module that the adapter changes.

    Raises:
        CheckpointError: it has no such module.
    """
    wanted = list(dict.fromkeys((*adapter.changes, *adapter.of_parameters)))

    def fits(module: str, stored: str) -> bool:
        change, weight = adapter.changes.get(module), f"{stored}.weight"
        if change is None or change.product is None or weight not in base:
            return True
        return base.shape(weight) == _adapted_shape(change.product)

    found, missing = module_names(wanted, modules, fits)
    if missing:
        shown = ", ".join(f"'{each}'" for each in sorted(missing)[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        made_for = f", '{adapter.base}'" if adapter.base else ""
        raise CheckpointError(
            f"'{name}': the adapter changes modules that the model does not have: {shown}{more}",
            remedy=f"give the model that it was made for{made_for}; if it is that, {WITH_PEFT}",
        )
    return found


def _changes(module: str, change: ModuleChange) -> dict[str, TensorChange]:
    """The changes of the tensors of one module of the model."""
    weight, bias = f"{module}.weight", f"{module}.bias"
    found = {f"{module}.{last}": TensorChange(stored) for last, stored in change.replaced.items()}
    product = change.product
    if product is not None or change.rows is not None:
        old = found.get(weight, TensorChange())
        found[weight] = TensorChange(old.replaced, change.rows, product)
    if product is not None and product.bias is not None:
        old = found.get(bias, TensorChange())
        found[bias] = TensorChange(old.replaced, bias=(product.bias, product.scale))
    return found


def _check(model: AdaptedModel, tensor: str, change: TensorChange) -> None:
    """Check that a changed tensor exists, and that the change fits."""
    if tensor not in model:
        if change.bias is not None and change.replaced is None:
            module = tensor.rpartition(".")[0]
            cause = f"the adapter adds a bias to '{module}', which has none"
        else:
            does = "has" if change.replaced is not None else "changes"
            cause = f"the adapter {does} '{tensor}', which the model does not have"
        raise CheckpointError(f"'{model.name}': {cause}", remedy=_OTHER_MODEL)
    shape = model.shape(tensor)
    if isinstance(change.product, LowRankProduct) and (
        shape != (wanted := _adapted_shape(change.product))
    ):
        raise CheckpointError(
            f"'{model.name}': the adapter is for a weight of shape {'x'.join(map(str, wanted))}, "
            f"the model's '{tensor}' is {'x'.join(map(str, shape))}",
            remedy=_OTHER_MODEL,
        )
    if change.rows is not None and (
        change.rows.rows.shape[1:] != shape[1:] or max(change.rows.indices, default=0) >= shape[0]
    ):
        raise CheckpointError(
            f"'{model.name}': the adapter's rows for '{tensor}' do not fit the model's",
            remedy=_OTHER_MODEL,
        )


def _adapted_shape(product: LowRankProduct) -> Shape:
    """The shape of the weight that a product is added to."""
    shape: Shape = (product.up.shape[0], *product.down.shape[1:])  # of convolutions, more than 2
    return shape[::-1] if product.weight_transposed else shape


def _load(builder: GraphBuilder, tensor: StoredTensor, name: str) -> Load:
    return builder.load_bytes(tensor.bytes, tensor.dtype, tensor.shape, name)


def _add_product(
    builder: GraphBuilder,
    node: Load | Merge,
    product: LowRankProduct,
    name: str,
    rows: Sequence[int] | None,
) -> Merge:
    down, up, lengths = product.down, product.up, product.lengths
    if lengths is not None:
        if rows is not None and product.weight_transposed:
            down = stored_rows(down.transpose(), rows).transpose()
        elif rows is not None:
            up, lengths = stored_rows(up, rows), stored_rows(lengths, rows)
        side = [_load(builder, each, name) for each in (down, up, lengths)]
        kernel = LowRank(product.scale, product.rank, lengths=True)
        if not product.weight_transposed:
            return builder.merge([node], kernel, name, side=side)
        turned = builder.merge([node], Transpose(), name)
        adapted = builder.merge([turned], kernel, name, side=side)
        return builder.merge([adapted], Transpose(), name)
    if product.weight_transposed:
        down, up = up.transpose(), down.transpose()
    side = [_load(builder, each, name) for each in (down, stored_rows(up, rows))]
    return builder.merge([node], LowRank(product.scale, product.rank), name, side=side)


def _add_expert_product(
    builder: GraphBuilder,
    node: Load | Merge,
    product: ExpertProduct,
    name: str,
    rows: Sequence[int] | None,
) -> Merge:
    down, up = product.arranged(builder, name)
    matrices = product.experts
    if product.expert is not None or matrices == 1:
        number, last = product.expert or 0, product.first + node.shape[-2]
        down, up = (each.narrow(0, number, number + 1) for each in (down, up))
        up = up.reshape(up.shape[1:])
        up = up.narrow(0, product.first, last) if rows is None else stored_rows(up, rows)
        matrices = 1
    elif rows is not None:
        down, up, matrices = stored_rows(down, rows), stored_rows(up, rows), len(rows)
    kernel = LowRank(product.scale, product.rank, matrices=matrices)
    return builder.merge([node], kernel, name, [_load(builder, each, name) for each in (down, up)])


def _add_bias(
    builder: GraphBuilder, node: Load | Merge, bias: StoredTensor, scale: float, name: str
) -> Merge:
    """The bias plus ``scale`` · the adapter's bias, as a product of rank 1 with the number 1."""
    unit = builder.load(_ONE, 0, F32, (1, 1), _ONE.name)
    column = _load(builder, bias.reshape((*bias.shape, 1)), name)
    return builder.merge([node], LowRank(scale, 1), name, side=[unit, column])


def _replace_rows(
    builder: GraphBuilder, node: Load | Merge, new: ReplacedRows, numbers: Sequence[int], name: str
) -> Merge:
    """``node`` (rows ``numbers`` of the model) with rows replaced by the adapter's."""
    places = {index: place for place, index in enumerate(new.indices)}
    origin = [places.get(number, -1) for number in numbers]
    table = b"".join(b"\x01\x00" if place < 0 else b"\x00\x01" for place in origin)
    count = len(origin)
    rows = _load(builder, new.rows.rows(origin), name)
    source = MemorySource(table, f"rows of {name}")
    choice = builder.load(source, 0, U8, (count, 2), f"rows of {name}")
    return builder.merge([node, rows], FillRows(), name, side=[choice])
