"""A model with an adapter applied to its tensors.

No result is stored: a changed tensor is computed from the model's tensor when it is needed, so a
model with several adapters is read once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from mergeloom.planners.models.adapter import Adapter, LowRankProduct, ModuleChange, ReplacedRows
from mergeloom.planners.models.architecture import Architecture, infer_architecture
from mergeloom.planners.models.model import Model, TensorLocation
from mergeloom.planners.models.rows import stored_rows
from mergeloom.planners.models.token_weights import Head, TokenWeights

Shape = tuple[int, ...]
_ONE = MemorySource(b"\x00\x00\x80\x3f", "the number 1")


@dataclass(frozen=True)
class AdaptedModel:
    """``base`` with ``adapter``; ``changes`` are keyed by the base's tensor names.

    ``head`` is the name of the output head if the base ties it to the embedding and the adapter
    changes only one of them, so that the result has both.
    """

    name: str
    base: Model
    adapter: Adapter
    changes: Mapping[str, ModuleChange]
    head: str | None
    prefixes: tuple[str, str]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        changed = dict(self.base.config)
        if self.head is not None:
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
        changed = any(self._is_changed(name) for name in names)
        equal_weights: frozenset[str] = frozenset() if changed else found.equal_weights
        if self.head is not None:
            return TokenWeights(found.embedding, self.head, Head.OWN, equal_weights)
        kind = Head.OWN if changed and found.head in found.equal_weights else found.kind
        return TokenWeights(found.embedding, found.head, kind, equal_weights)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.base or tensor == self.head

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        if self.head is not None:
            yield self.head

    def stored(self, tensor: str) -> TensorLocation | None:
        if tensor == self.head or self._is_changed(tensor):
            return None
        return self.base.stored(tensor)

    def _is_changed(self, tensor: str) -> bool:
        return tensor.rpartition(".")[0] in self.changes

    def shape(self, tensor: str) -> Shape:
        replaced = self._replacement(tensor)
        return self.base.shape(self._base_tensor(tensor)) if replaced is None else replaced.shape

    def dtype(self, tensor: str) -> DType:
        return self.base.dtype(self._base_tensor(tensor))

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        module, _, last = tensor.rpartition(".")
        change = self.changes.get(module)
        replaced = self._replacement(tensor)
        if replaced is not None:
            node: Load | Merge = _load(builder, stored_rows(replaced, rows), tensor)
        else:
            node = self.base.node(builder, self._base_tensor(tensor), rows)
        if change is None:
            return node
        product = change.product
        if last == "bias" and product is not None and product.bias is not None:
            bias = stored_rows(product.bias, rows)
            return _add_bias(builder, node, bias, product.scale, tensor)
        if last != "weight":
            return node
        if change.rows is not None:
            numbers = range(node.shape[0]) if rows is None else rows
            node = _replace_rows(builder, node, change.rows, numbers, tensor)
        if product is not None:
            node = _add_product(builder, node, product, tensor, rows)
        return node

    def _base_tensor(self, tensor: str) -> str:
        """The tensor of the base that ``tensor`` is computed from."""
        if tensor == self.head:
            embedding = self.base.tokens.embedding
            assert embedding is not None, "a head that is tied is tied to an embedding"
            return embedding
        return tensor

    def _replacement(self, tensor: str) -> StoredTensor | None:
        module, _, last = tensor.rpartition(".")
        change = self.changes.get(module)
        return None if change is None else change.replaced.get(last)


_OTHER_MODEL = "take the model that the adapter was made for"


def apply_adapter(name: str, base: Model, adapter: Adapter) -> AdaptedModel:
    """Apply ``adapter`` to ``base``; the result is called ``name``.

    Raises:
        CheckpointError: the adapter changes modules the model does not have, or does not fit.
    """
    tokens = base.tokens
    tied = tokens.kind is Head.TIED and tokens.head is None and tokens.embedding is not None
    embedding = (tokens.embedding or "").rpartition(".")[0]
    modules = {tensor.rpartition(".")[0] for tensor in base}
    head = _head_module(base.config, modules)
    if tied:
        modules.add(head)
    prefixes = _prefixes(name, adapter, modules)
    strip, add = prefixes
    changes = {add + module[len(strip) :]: change for module, change in adapter.changes.items()}
    untied = tied and any(
        module in changes and changes[module].rows is None for module in (head, embedding)
    )
    model = AdaptedModel(
        name, base, adapter, changes, f"{head}.weight" if untied else None, prefixes
    )
    if untied and modules.intersection(_TIED_WITH_BIAS):
        raise CheckpointError(
            f"'{name}': the adapter changes only one of embedding and head, which the model ties "
            "together with a bias, so neither can be stored without the other",
            remedy="merge it into its model with peft (merge_and_unload) first",
        )
    _check(model)
    return model


_HEADS_BESIDE = {
    "generator_predictions.dense": "generator_lm_head",
    "vocab_transform": "vocab_projector",
    "head.dense": "decoder",
}
"""Modules outside the layers, and the name of the head beside them (ELECTRA, DistilBERT,
ModernBERT)."""

_TIED_WITH_BIAS = ("cls.predictions.transform.dense", "lm_head.dense", "predictions.dense")
"""Modules beside heads whose bias is tied as well (BERT, RoBERTa, ALBERT)."""

_HEADS_BY_TYPE = {"gpt_neox": "embed_out", "whisper": "proj_out"}
"""Names of heads by ``model_type``; all others call theirs ``lm_head``."""


def _head_module(config: Mapping[str, Any], modules: Collection[str]) -> str:
    """The name of a head that is tied, and so not stored, in the model's class."""
    beside = (head for module, head in _HEADS_BESIDE.items() if module in modules)
    return next(beside, _HEADS_BY_TYPE.get(str(config.get("model_type")), "lm_head"))


def _prefixes(name: str, adapter: Adapter, modules: Iterable[str]) -> tuple[str, str]:
    """The prefix of the adapter's module names, and the corresponding prefix in the model.

    An adapter trained with another class of the same model uses another prefix: ``model.layers``
    instead of ``layers`` or ``language_model.model.layers``.
    """
    known = set(modules)
    wanted = list(adapter.changes)
    if known.issuperset(wanted):
        return "", ""
    for first in wanted:
        parts = first.split(".")
        for cut in range(len(parts)):
            rest = ".".join(parts[cut:])
            strip = first[: len(first) - len(rest)]
            for candidate in sorted(m for m in known if m == rest or m.endswith(f".{rest}")):
                add = candidate[: len(candidate) - len(rest)]
                if _numbers(strip) and _numbers(add) and _numbers(strip) != _numbers(add):
                    continue  # layer 9 is not another name of layer 0
                moved = (add + m[len(strip) :] for m in wanted if m.startswith(strip))
                if all(m.startswith(strip) for m in wanted) and known.issuperset(moved):
                    return strip, add
        break
    missing = sorted(set(wanted) - known)
    shown = ", ".join(f"'{each}'" for each in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    made_for = f", '{adapter.base}'" if adapter.base else ""
    raise CheckpointError(
        f"'{name}': the adapter changes modules that the model does not have: {shown}{more}",
        remedy=f"give the model that it was made for{made_for}, saved by the class it was trained "
        "with",
    )


def _numbers(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part.isdigit()]


def _check(model: AdaptedModel) -> None:
    """Check that all changed tensors exist and fit."""
    for module, change in model.changes.items():
        weight, bias = f"{module}.weight", f"{module}.bias"
        for last in change.replaced:
            if f"{module}.{last}" not in model:
                raise CheckpointError(
                    f"'{model.name}': the adapter has '{module}.{last}', which the model "
                    "does not have",
                    remedy=_OTHER_MODEL,
                )
        if (change.product or change.rows) and weight not in model:
            raise CheckpointError(
                f"'{model.name}' has no '{weight}', which the adapter changes", remedy=_OTHER_MODEL
            )
        if change.product is not None:
            _check_product(model.name, weight, model.shape(weight), change.product)
            if change.product.bias is not None and bias not in model:
                raise CheckpointError(
                    f"'{model.name}': the adapter adds a bias to '{module}', which has none",
                    remedy=_OTHER_MODEL,
                )
        if change.rows is not None:
            shape, new = model.shape(weight), change.rows
            if new.rows.shape[1:] != shape[1:] or max(new.indices, default=0) >= shape[0]:
                raise CheckpointError(
                    f"'{model.name}': the adapter's rows for '{weight}' do not fit the model's",
                    remedy=_OTHER_MODEL,
                )


def _check_product(name: str, weight: str, shape: Shape, product: LowRankProduct) -> None:
    wanted: Shape = (product.up.shape[0], *product.down.shape[1:])  # convolutions have more than 2
    if product.weight_transposed:
        wanted = wanted[::-1]
    if shape != wanted:
        raise CheckpointError(
            f"'{name}': the adapter is for a weight of shape {'x'.join(map(str, wanted))}, the "
            f"model's '{weight}' is {'x'.join(map(str, shape))}: it was made for another model"
        )


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
