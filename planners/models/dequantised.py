"""A model that dequantises the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mergeloom.engine.base.dtypes import BF16, BY_NAME, DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.planners.models.architecture import ArchitectureCache
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.model import StoredModel, TensorLocation
from mergeloom.planners.models.quantised_weight import QuantisedWeight
from mergeloom.planners.models.quantised_weights import DecodedWeights, without_quantisation
from mergeloom.planners.models.rows import computed_rows, stored_rows
from mergeloom.planners.models.sameness import equal_bytes
from mergeloom.planners.models.stored_tensors import Described
from mergeloom.planners.models.token_weights import TokenWeights, token_weights

Shape = tuple[int, ...]


class _Described(NamedTuple):
    dtype: DType
    shape: Shape


@dataclass(frozen=True)
class DequantisedModel(StoredModel):
    """``checkpoint`` with dequantised weights; ``decoded`` says which tensors are codes.

    Values are computed on demand, tile by tile. Their dtype is the one that the configuration
    names, which the model was trained in, or else bfloat16.
    """

    decoded: DecodedWeights

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return without_quantisation(self.checkpoint.config)

    @cached_property
    def described(self) -> Mapping[str, Described]:
        return {tensor: _Described(self.dtype(tensor), self.shape(tensor)) for tensor in self}

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        return {tensor: self.shape(tensor) for tensor in self}

    @cached_property
    def tokens(self) -> TokenWeights:
        """As for any checkpoint; quantised weights are not compared and count as different."""
        plain = self.decoded.plain

        def equal(one: str, other: str) -> bool:
            return one in plain and other in plain and equal_bytes(plain[one], plain[other])

        return token_weights(self.architecture, self.config, self.shape, equal)

    @cached_property
    def _value_dtype(self) -> DType:
        for part in (self.config, self.config.get("text_config")):
            if isinstance(part, Mapping):
                for key in ("dtype", "torch_dtype"):
                    found = BY_NAME.get(str(part.get(key)).removeprefix("torch."))
                    if found is not None and found.floating and found.bits >= 16:
                        return found
        return BF16

    def stored(self, tensor: str) -> TensorLocation | None:
        plain = self.decoded.plain.get(tensor)
        return None if plain is None else TensorLocation(tensor, plain)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.decoded.plain or tensor in self.decoded.coded

    def __iter__(self) -> Iterator[str]:
        """Names in file order, a quantised weight at the position of its codes."""
        yield from self.decoded.plain
        yield from self.decoded.coded

    def shape(self, tensor: str) -> Shape:
        coded = self.decoded.coded.get(tensor)
        return self.decoded.plain[tensor].shape if coded is None else coded.shape

    def dtype(self, tensor: str) -> DType:
        plain = self.decoded.plain.get(tensor)
        return self._value_dtype if plain is None or plain.dtype.codec else plain.dtype

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        coded = self.decoded.coded.get(tensor)
        if coded is None:
            return _load(builder, stored_rows(self.decoded.plain[tensor], rows), tensor)
        values = _values(builder, coded, tensor)
        return values if rows is None else computed_rows(builder, values, rows)


def _load(builder: GraphBuilder, tensor: StoredTensor, name: str) -> Load:
    return builder.load_bytes(tensor.bytes, tensor.dtype, tensor.shape, name)


def _values(builder: GraphBuilder, coded: QuantisedWeight, name: str) -> Merge:
    codes = _load(builder, coded.codes, name)
    side = [_load(builder, each, name) for each in coded.side]
    stored_rows = builder.merge([codes], Transpose(), name) if coded.codes_transposed else codes
    values = builder.merge([stored_rows], coded.kernel, name, side=side)
    return builder.merge([values], Transpose(), name) if coded.values_transposed else values


def stored_model(name: str, checkpoint: Checkpoint, inferred: ArchitectureCache) -> StoredModel:
    """The model in a checkpoint, dequantised if necessary; ``inferred`` caches architectures."""
    if checkpoint.decoded is None:
        return StoredModel(name, checkpoint, infer=inferred)
    return DequantisedModel(name, checkpoint, checkpoint.decoded, infer=inferred)
