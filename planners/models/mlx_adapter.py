"""Adapters saved by MLX-LM: LoRA and DoRA of linear layers.

``adapters.safetensors`` has, for a weight (out, in) of a module, ``lora_a`` (in, rank) and
``lora_b`` (rank, out): W + s·(a·b)ᵀ, where s is ``scale`` of ``lora_parameters``, whatever the
rank. DoRA has the row lengths ``m`` (out) as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.module_changes import LowRankProduct, ModuleChange

_WITH_MLX = "merge it into its model with mlx_lm.fuse first"
_EMBEDDINGS = ("embed", "wte", "wpe")


def is_of_mlx(config: Mapping[str, Any]) -> bool:
    """Whether an adapter's configuration is one of MLX-LM."""
    return config.get("peft_type") is None and bool(
        {"fine_tune_type", "lora_parameters"} & config.keys()
    )


def mlx_changes(checkpoint: Checkpoint) -> dict[str, ModuleChange]:
    """The change of each module.

    Raises:
        CheckpointError: it is of a kind that is not supported, or malformed.
    """
    directory, scale = checkpoint.folder.name, _scale(checkpoint)
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        module, _, part = name.rpartition(".")
        parts.setdefault(module, {})[part] = tensor
    changes = {}
    for module, found in parts.items():
        down, up, lengths = (found.get(part) for part in ("lora_a", "lora_b", "m"))
        last = module.rpartition(".")[2]
        if down is None or up is None or len(found) > 2 + (lengths is not None):
            raise CheckpointError(
                f"'{directory}' has {', '.join(found)} of '{module}', not the two matrices of LoRA",
                remedy=_WITH_MLX,
            )
        if last.startswith(_EMBEDDINGS) or len(down.shape) != 2 or len(up.shape) != 2:
            what = "experts" if len(down.shape) == 3 else "an embedding"
            raise CheckpointError(
                f"'{directory}' changes {what}, '{module}', in MLX's way", remedy=_WITH_MLX
            )
        if down.shape[1] != up.shape[0]:
            raise CheckpointError(
                f"'{directory}': the matrices for '{module}' have different ranks",
                remedy=COPY_AGAIN,
            )
        product = LowRankProduct(
            down=down.transpose(),
            up=up.transpose(),
            scale=scale,
            weight_transposed=False,
            lengths=lengths,
            bias=None,
        )
        changes[module] = ModuleChange(product, None, {})
    return changes


def _scale(checkpoint: Checkpoint) -> float:
    config, where = checkpoint.config, f"'{checkpoint.folder.name}'"
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise CheckpointError(
            f"{where} has the complete weights of some layers (fine_tune_type: {str(kind)[:40]!r})",
            remedy=_WITH_MLX,
        )
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if isinstance(parameters, Mapping) and parameters.get("alpha") is not None:
        raise CheckpointError(
            f"{where} has 'alpha' in 'lora_parameters', whose effect depends on the version of "
            "MLX-LM",
            remedy="write the 'scale' that it was trained with, times alpha / rank in versions "
            "that had alpha, and remove it",
        )
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise CheckpointError(
            f"{where}: 'scale' of 'lora_parameters' is {scale!r}, not a number", remedy=COPY_AGAIN
        )
    return float(scale)
