"""Names of the tensors of output heads that are tied, and so not stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_HEADS_BESIDE = {
    "generator_predictions.dense": "generator_lm_head",
    "vocab_transform": "vocab_projector",
    "head.dense": "decoder",
    "cls.predictions.transform.dense": "cls.predictions.decoder",
    "lm_head.dense": "lm_head.decoder",
    "predictions.dense": "predictions.decoder",
}
"""Modules outside the layers, and the name of the head beside them (ELECTRA, DistilBERT,
ModernBERT, BERT, RoBERTa, ALBERT)."""

_HEADS_BY_TYPE = {"gpt_neox": "embed_out", "whisper": "proj_out"}
"""Names of heads by ``model_type``; all others call theirs ``lm_head``."""


def head_module(config: Mapping[str, Any], modules: Collection[str]) -> str:
    """The name of a tied head in the model's class; ``modules`` are those with stored tensors."""
    for beside, head in _HEADS_BESIDE.items():
        if beside in modules:
            return head
        for module in modules:
            if module.endswith(f".{beside}"):  # in a part of a larger model (BLIP)
                return f"{module.removesuffix(beside)}{head}"
    return _HEADS_BY_TYPE.get(str(config.get("model_type")), "lm_head")


def untied_tensors(head: str, embedding: str, tensors: Collection[str]) -> dict[str, str]:
    """The tensors of a head that is no longer tied, and the stored tensor that each was equal to.

    Where the head's bias is a parameter of the module around it (BERT), both are stored: a class
    that does not tie the weights does not tie the biases either.
    """
    bias = f"{head.rpartition('.')[0]}.bias"
    also = {f"{head}.bias": bias} if bias in tensors and f"{head}.bias" not in tensors else {}
    return {f"{head}.weight": embedding, **also}
