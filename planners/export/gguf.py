"""Plans the export of a model to one GGUF file, as a graph with a single output file.

Names, row order and norms are converted as ggml's converter does (`planners.models.gguf.families`).
Matrices get the requested type, everything else float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeloom.engine.base.dtypes import BF16, F16, F32, GGML, DType
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, Merge, OutputFile, Write
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.job import Job
from mergeloom.engine.storage.gguf_writing import build_gguf
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.planners.config.model_reference import parse_reference
from mergeloom.planners.export.metadata import (
    OTHER_CONVERTER,
    family_of_config,
    model_metadata,
    number_of_experts,
    rope_factor_tensors,
)
from mergeloom.planners.export.tokenizer import tokenizer_metadata
from mergeloom.planners.models.gguf.families import Family
from mergeloom.planners.models.gguf.names import file_names
from mergeloom.planners.models.gguf.tensors import EXPERTS, KEYS, QUERIES, interleaved_order
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.models.roles import is_buffer
from mergeloom.planners.models.token_weights import Head

FILE_NAME = "model.gguf"
Q8_0 = GGML[8]
TYPES: Mapping[str, tuple[DType, int]] = {
    "f32": (F32, 0),
    "f16": (F16, 1),
    "bf16": (BF16, 32),
    "q8_0": (Q8_0, 7),
}
"""Types of matrices, each with the code that names it as a file's main type."""

_PLUS_ONE = Dequantise((), points=Scale(single=True))
_MINUS_ONE = MemorySource(b"\x00\x00\x80\xbf", "the number -1")


@dataclass(frozen=True)
class Export:
    """A planned export: ``job`` writes the file `FILE_NAME`, of ``nbytes`` bytes; ``left_out`` are
    tensors of the model that are not written."""

    job: Job
    graph: Graph
    nbytes: int
    left_out: tuple[str, ...]


def plan_export(
    reference: str, resolver: Resolver, kind: str, name: str, with_tokenizer: bool = True
) -> Export:
    """Plan the export of a model to a file with matrices of a ``kind`` of `TYPES`.

    ``reference`` is a model reference as in a configuration, ``name`` the model's name in the file.
    Headers and small files are read.

    Raises:
        ConfigError, CheckpointError: it is not found, malformed, or of an unsupported family.
    """
    models = Models(resolver)
    parsed = parse_reference(reference)
    model = models.get(parsed)
    family = family_of_config(model.config, reference)
    values = model_metadata(family, model.config, name, reference)
    values["general.file_type"] = TYPES[kind][1]
    folder = models.folder(parsed)
    if with_tokenizer and folder is not None:
        values |= tokenizer_metadata(folder, values[f"{family.architecture}.vocab_size"], reference)
    builder = GraphBuilder()
    tensors, left_out = _file_tensors(family, model, builder, TYPES[kind][0], reference)
    for called, factors in rope_factor_tensors(model.config).items():
        load = builder.load_bytes(factors.bytes, factors.dtype, factors.shape, called)
        tensors[called] = builder.merge([load], Copy(), called), F32
    described = [(called, dtype, _file_shape(merge)) for called, (merge, dtype) in tensors.items()]
    try:
        header, offsets = build_gguf(values, described)
    except ValueError as error:
        raise CheckpointError(
            f"'{reference}' cannot be exported: {error}", remedy=OTHER_CONVERTER
        ) from error
    size = offsets[-1] + described[-1][1].nbytes(math.prod(described[-1][2]))
    file = OutputFile(FILE_NAME, header, size)
    writes = [
        Write(merge, file, offset, dtype, called)
        for (called, (merge, dtype)), offset in zip(tensors.items(), offsets, strict=True)
    ]
    graph = builder.build(writes, [file])
    verify(graph)
    return Export(_job(graph, models, reference, kind), graph, size, left_out)


def _file_tensors(
    family: Family, model: Model, builder: GraphBuilder, dtype: DType, where: str
) -> tuple[dict[str, tuple[Merge, DType]], tuple[str, ...]]:
    """The tensors of the file by name, and the tensors of the model that are left out.

    Raises:
        CheckpointError: a tensor is unknown in the family, or missing in the model.
    """
    config = model.config
    experts = (number_of_experts(config) or 0) if family.experts else 0
    names = file_names(family, int(config["num_hidden_layers"]), experts, f"'{where}'")
    tied = set(model.tokens.equal_weights) if model.tokens.kind is Head.TIED else set()
    unknown = [name for name in model if name not in names]
    left = [name for name in unknown if is_buffer(name, model.shape(name))]
    strange = next((name for name in unknown if name not in left), None)
    if strange is not None:
        raise CheckpointError(
            f"'{where}' has '{strange}', unlike GGUF files of a '{family.model_type}'",
            remedy=OTHER_CONVERTER,
        )
    heads = {
        QUERIES: int(config["num_attention_heads"]),
        KEYS: int(config.get("num_key_value_heads") or config["num_attention_heads"]),
    }
    found: dict[str, tuple[Merge, DType]] = {}
    for ours, called in names.items():
        if ours not in model:
            continue
        if ours in tied:
            left.append(ours)
            continue
        if family.experts and EXPERTS in ours:
            if called not in found:
                group = [each for each in names if names[each] == called]
                found[called] = _stacked_experts(builder, model, group, dtype, where)
            continue
        counts = (
            count for part, count in heads.items() if family.has_interleaved_rows and part in ours
        )
        found[called] = _file_tensor(builder, model, ours, next(counts, None), family, dtype)
    missing = [names[each] for each in names if each.endswith("embed_tokens.weight")]
    if missing[0] not in found:
        raise CheckpointError(
            f"'{where}' has no embedding, so it is not a complete model", remedy=COPY_AGAIN
        )
    return found, tuple(left)


def _file_tensor(
    builder: GraphBuilder,
    model: Model,
    tensor: str,
    heads: int | None,
    family: Family,
    dtype: DType,
) -> tuple[Merge, DType]:
    """A tensor as the file has it, and its dtype there."""
    shape = model.shape(tensor)
    rows = None if heads is None else interleaved_order(shape[0], heads)
    node: Load | Merge = model.node(builder, tensor, rows)
    if len(shape) < 2 or shape[0] == 1:
        if not (family.has_offset_norms and tensor.endswith("norm.weight")):
            return builder.merge([node], Copy(), tensor), F32
        one = StoredTensor.at(_MINUS_ONE, 0, F32, (1,))
        side = builder.load_bytes(one.bytes, one.dtype, one.shape, tensor)
        return builder.merge([node], _PLUS_ONE, tensor, side=[side]), F32
    if shape[-1] % dtype.block:
        dtype = F16
    return builder.merge([node], Copy(), tensor), dtype


def _file_shape(merge: Merge) -> tuple[int, ...]:
    """The shape in the file, where a weight of one row is a vector."""
    shape = merge.shape
    return shape[1:] if len(shape) == 2 and shape[0] == 1 else shape


def _stacked_experts(
    builder: GraphBuilder, model: Model, experts: Sequence[str], dtype: DType, where: str
) -> tuple[Merge, DType]:
    """The experts of one layer as one tensor, as the file has them, and its dtype there.

    Raises:
        CheckpointError: they are not alike, or are computed.
    """
    stored = [model.stored(each) if each in model else None for each in experts]
    try:
        whole = StoredTensor.stack([each.entry for each in stored if each is not None])
    except ValueError as error:
        raise CheckpointError(
            f"'{where}': '{experts[0]}' and others like it: {error}",
            remedy=OTHER_CONVERTER,
        ) from error
    if None in stored:
        name = experts[stored.index(None)]
        how = (
            "is computed from quantised weights or other tensors" if name in model else "is missing"
        )
        raise CheckpointError(
            f"'{where}' cannot be exported: '{name}' {how}",
            remedy="merge it first ('merge_method: passthrough'), and export the output",
        )
    load = builder.load_bytes(whole.bytes, whole.dtype, whole.shape, experts[0])
    return builder.merge([load], Copy(), experts[0]), F16 if whole.shape[
        -1
    ] % dtype.block else dtype


def _job(graph: Graph, models: Models, reference: str, kind: str) -> Job:
    stored = models.stored_by_name()
    identity: dict[str, Any] = {"model": reference, "type": kind}
    for name, checkpoint in stored.items():
        for source in checkpoint.sources:
            identity[f"'{Path(source.name).name}' of model '{name}'"] = source.description
    arithmetic = cpu_arithmetic()
    identity["arithmetic"] = arithmetic.name
    digest = hashlib.blake2b(f"{graph.fingerprint()}\n{arithmetic.name}".encode(), digest_size=16)
    return Job(graph, digest.hexdigest(), identity, arithmetic, TORCH, (), {"model": reference})
