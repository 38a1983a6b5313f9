"""The tensors of a GGUF file under the names, and in the row order, of transformers.

A tensor with another name or row order is read in that order from where it is. Norms that a file
stores plus 1 are computed by a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.planners.models.gguf.config import ROPE_FACTOR_TENSORS
from mergeloom.planners.models.gguf.families import CONVERT_AGAIN, ORIGINAL, Family
from mergeloom.planners.models.gguf.names import file_names
from mergeloom.planners.models.quantised_weight import QuantisedWeight
from mergeloom.planners.models.quantised_weights import DecodedWeights

EXPERTS = ".experts."
QUERIES, KEYS = ".self_attn.q_proj.", ".self_attn.k_proj."
_MINUS_ONE = Dequantise((), points=Scale(single=True))
_ONE = StoredTensor.at(MemorySource(b"\x00\x00\x80\x3f", "the number 1"), 0, F32, (1,))


def transformers_tensors(
    family: Family,
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    where: str,
) -> DecodedWeights:
    """The tensors of a file called ``where``, whose model has the configuration ``config``.

    Raises:
        CheckpointError: a tensor is unknown in the family, or has a wrong shape.
    """
    layers, experts = config["num_hidden_layers"], config.get(family.experts, 0)
    heads = {QUERIES: config["num_attention_heads"], KEYS: config["num_key_value_heads"]}
    names_in_transformers: dict[str, list[str]] = {}
    for our_name, name in file_names(family, layers, experts, f"'{where}'").items():
        names_in_transformers.setdefault(name, []).append(our_name)
    quantised: dict[str, QuantisedWeight] = {}
    plain: dict[str, StoredTensor] = {}
    unknown = [
        name for name in tensors if name not in names_in_transformers and not is_rope_factors(name)
    ]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"'{where}' has tensors that a model of the architecture '{family.architecture}' does "
            f"not have: '{unknown[0]}'{more}",
            remedy=ORIGINAL,
        )
    for name, tensor in tensors.items():
        our_name, *others = names_in_transformers.get(name, [""])
        if not our_name:
            continue
        if family.experts and EXPERTS in our_name:
            plain |= _separate_experts(tensor, [our_name, *others], name, where)
            continue
        if family.one_row and f".{family.one_row}." in our_name and len(tensor.shape) == 1:
            plain[our_name] = tensor.reshape((1, *tensor.shape))
            continue
        if family.has_offset_norms and our_name.endswith("norm.weight"):
            quantised[our_name] = QuantisedWeight(tensor, _MINUS_ONE, (_ONE,))
            continue
        counts = (
            count
            for part, count in heads.items()
            if family.has_interleaved_rows and part in our_name
        )
        count = next(counts, None)
        plain[our_name] = (
            tensor if count is None else _with_split_halves(tensor, count, name, where)
        )
    return DecodedWeights(
        quantised, plain, tuple(name for name in tensors if name not in names_in_transformers)
    )


def is_rope_factors(name: str) -> bool:
    """Whether a tensor holds factors of the rotary embedding, which the configuration has too."""
    return name in ROPE_FACTOR_TENSORS or name.endswith(
        ("attn_rot_embd.weight", "rope_freqs.weight")
    )


def split_halves_order(rows: int, heads: int) -> Sequence[int]:
    """The rows of a file's queries or keys in the order of transformers, which has the two halves
    of each head one after the other; a file has them interleaved.

    Raises:
        ValueError: the rows cannot be divided into heads with two halves.
    """
    if heads < 1 or rows % (2 * heads):
        raise ValueError(f"{rows} rows are not {heads} heads of two halves")
    half = rows // heads // 2
    return [
        2 * (head * half + inside) + side
        for head in range(heads)
        for side in (0, 1)
        for inside in range(half)
    ]


def interleaved_order(rows: int, heads: int) -> Sequence[int]:
    """The order that undoes `split_halves_order`."""
    order = [0] * rows
    for place, row in enumerate(split_halves_order(rows, heads)):
        order[row] = place
    return order


def _separate_experts(
    tensor: StoredTensor, names: Sequence[str], name: str, where: str
) -> dict[str, StoredTensor]:
    """The experts that a file stores as one tensor, by their names in transformers."""
    if len(tensor.shape) < 2 or tensor.shape[0] != len(names):
        shape = "x".join(map(str, tensor.shape))
        raise CheckpointError(
            f"'{where}': '{name}' ({shape}) does not hold {len(names)} experts",
            remedy=CONVERT_AGAIN,
        )
    rest = tensor.shape[1:]
    return {
        our_name: tensor.narrow(0, number, number + 1).reshape(rest)
        for number, our_name in enumerate(names)
    }


def _with_split_halves(tensor: StoredTensor, heads: int, name: str, where: str) -> StoredTensor:
    try:
        return tensor.rows(split_halves_order(tensor.shape[0] if tensor.shape else 0, heads))
    except ValueError as error:
        raise CheckpointError(
            f"'{where}': '{name}' does not fit the heads: {error}", remedy=CONVERT_AGAIN
        ) from error
