"""The tensors of a GGUF file as transformers has them: by their names there, rows in their order.

What is only called or arranged differently stays where it is and is read as transformers has it;
norms that a file has one added to are values of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.planners.models.coded import Decoded
from mergeloom.planners.models.coded_weight import Coded
from mergeloom.planners.models.gguf.config import FACTORS
from mergeloom.planners.models.gguf.families import Family
from mergeloom.planners.models.gguf.names import file_names

EXPERTS = ".experts."
QUERIES, KEYS = ".self_attn.q_proj.", ".self_attn.k_proj."
_LESS_ONE = Dequantise((), points=Scale(single=True))
_ONE = StoredTensor.at(MemorySource(b"\x00\x00\x80\x3f", "the number 1"), 0, F32, (1,))


def arrange(
    family: Family,
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    where: str,
) -> Decoded:
    """The tensors of a file called ``where``, whose model has the configuration ``config``.

    Raises:
        CheckpointError: tensors are there that the family does not have, or of a wrong shape.
    """
    layers, experts = config["num_hidden_layers"], config.get(family.experts, 0)
    heads = {QUERIES: config["num_attention_heads"], KEYS: config["num_key_value_heads"]}
    called: dict[str, list[str]] = {}
    for ours, name in file_names(family, layers, experts, f"'{where}'").items():
        called.setdefault(name, []).append(ours)
    coded: dict[str, Coded] = {}
    plain: dict[str, StoredTensor] = {}
    unknown = [name for name in tensors if name not in called and not is_factors(name)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"'{where}' has tensors that a model of the architecture '{family.architecture}' does "
            f"not have: '{unknown[0]}'{more}",
            remedy="merge its original weights",
        )
    for name, tensor in tensors.items():
        ours, *others = called.get(name, [""])
        if not ours:
            continue
        if family.experts and EXPERTS in ours:
            plain |= _apart(tensor, [ours, *others], name, where)
            continue
        if family.one_row and f".{family.one_row}." in ours and len(tensor.shape) == 1:
            plain[ours] = tensor.reshape((1, *tensor.shape))
            continue
        if family.offset_norms and ours.endswith("norm.weight"):
            coded[ours] = Coded(tensor, _LESS_ONE, (_ONE,))
            continue
        turned = (count for part, count in heads.items() if family.interleaved and part in ours)
        count = next(turned, None)
        plain[ours] = tensor if count is None else _halves(tensor, count, name, where)
    return Decoded(coded, plain, tuple(name for name in tensors if name not in called))


def is_factors(name: str) -> bool:
    """Whether a tensor holds settings of the rotary embedding, which the configuration has too."""
    return name in FACTORS or name.endswith(("attn_rot_embd.weight", "rope_freqs.weight"))


def halves(rows: int, heads: int) -> Sequence[int]:
    """Rows of queries or keys of so many heads in the order of transformers: of each head first
    those of one half, then of the other, which a file has in turn.

    Raises:
        ValueError: heads have no two halves of whole rows.
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


def pairs(rows: int, heads: int) -> Sequence[int]:
    """The order that undoes `halves`."""
    order = [0] * rows
    for place, row in enumerate(halves(rows, heads)):
        order[row] = place
    return order


def _apart(
    tensor: StoredTensor, names: Sequence[str], name: str, where: str
) -> dict[str, StoredTensor]:
    """The experts of one tensor, by their names."""
    if len(tensor.shape) < 2 or tensor.shape[0] != len(names):
        shape = "x".join(map(str, tensor.shape))
        raise CheckpointError(f"'{where}': '{name}' ({shape}) does not hold {len(names)} experts")
    rest = tensor.shape[1:]
    return {
        ours: tensor.narrow(0, number, number + 1).reshape(rest)
        for number, ours in enumerate(names)
    }


def _halves(tensor: StoredTensor, heads: int, name: str, where: str) -> StoredTensor:
    try:
        return tensor.rows(halves(tensor.shape[0] if tensor.shape else 0, heads))
    except ValueError as error:
        raise CheckpointError(f"'{where}': '{name}' does not fit the heads: {error}") from error
