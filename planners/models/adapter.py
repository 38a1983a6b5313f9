"""Adapters saved by PEFT, or MLX: the change that each tensor makes to a module of a model.

An adapter directory contains ``adapter_config.json`` and ``adapter_model.safetensors`` (or the
older ``adapter_model.bin``; for those of MLX see `mergeloom.planners.models.mlx_adapter`). Its
tensors are named ``base_model.model.MODULE.PART``, where PART is:

    lora_A, lora_B                       W + s·B·A          (Hu et al. 2021, arXiv:2106.09685)
    lora_embedding_A, lora_embedding_B   the same for an embedding, both of them transposed
    lora_magnitude_vector                rows of W + s·B·A get this length (DoRA, Liu et al. 2024,
                                         arXiv:2402.09353)
    lora_B.bias                          s times it is added to the module's bias
    trainable_tokens_delta               replaces the rows of an embedding that
                                         ``trainable_token_indices`` lists
    weight, bias                         replace the module's own (``modules_to_save``)

Factors of a parameter that is no module's ``weight``, as of experts in one tensor
(``target_parameters``), have the name of its module; of several parameters of a module, each but
the last has ``base_layer`` once more before PART: `mergeloom.planners.models.adapted_parameters`.

s is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` for rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732); ``rank_pattern`` and ``alpha_pattern`` give r and alpha for some modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.checkpoint import Checkpoint, open_files
from mergeloom.planners.models.mlx_adapter import is_of_mlx, mlx_changes
from mergeloom.planners.models.module_changes import (
    FactorPair,
    LowRankProduct,
    ModuleChange,
    ReplacedRows,
)
from mergeloom.planners.models.peft_settings import WITH_PEFT, check_kind, unknown_settings
from mergeloom.planners.models.small_files import read_object

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")

_DIFFUSERS = "pytorch_lora_weights.safetensors"
_PREFIX = "base_model.model."
_MATRICES = ("lora_A.weight", "lora_B.weight")
_PART = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<matrix>lora_A|lora_B)(?:\.(?!weight$|bias$)[^.]+)?\.(?P<of>weight|bias)"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.[^.]+)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?"
    r"|(?:token_adapter\.)?(?P<rows>trainable_tokens_delta)(?:\.[^.]+)?"
    r")"
)
_WRAPPER_PARTS = re.compile(
    r"((\.base_layer)+|\.ln_tuning_layers|\.modules_to_save(\.(?!weight$|bias$)[^.]+)?)(?=\.[^.]+$)"
)
"""Name parts that PEFT adds to wrapped modules."""

_KOHYA = re.compile(r"^lora_|\.lora_(down|up)\.")
_NOT_MERGED = re.compile(r"\.lora_(velora|monteclora)_")
"""Tensors of training only, which peft does not merge either (VeLoRA, MonteCLoRA)."""


@dataclass(frozen=True)
class Adapter:
    """An adapter: ``checkpoint`` is its file, ``changes`` are keyed by module name.

    ``of_parameters`` has the factors for parameters that ``target_parameters`` may name, by module,
    innermost first.
    ``name`` is its name in the merge configuration. ``base`` and ``base_revision`` are the model it
    was made for, according to its own configuration.
    """

    name: str
    checkpoint: Checkpoint
    base: str | None
    base_revision: str | None
    changes: Mapping[str, ModuleChange]
    of_parameters: Mapping[str, tuple[FactorPair, ...]]

    def setting(self, module: str, pattern: str, key: str) -> float:
        """A number for a module or parameter: from the first entry of ``pattern`` that matches its
        name, or else the value of ``key``.

        Raises:
            CheckpointError: it is not a positive number.
        """
        config, directory = self.checkpoint.config, self.checkpoint.folder.name
        return _module_setting(config, module, pattern, key, directory)

    @property
    def notes(self) -> Iterator[str]:
        """What of its configuration was not understood."""
        known = is_of_mlx(self.checkpoint.config)
        for key in [] if known else unknown_settings(self.checkpoint.config):
            yield (
                f"'{self.name}' has the setting '{key}', which is not known and has no effect on "
                "the merge"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of parameters, or their last parts, that have factors of their own."""
        return _target_parameters(self.checkpoint.config)


def is_adapter(folder: Folder) -> bool:
    """Whether a folder contains an adapter and no model."""
    return folder.has(CONFIG) and not folder.has("config.json")


def has_adapter(folder: Folder) -> bool:
    """Whether a folder contains an adapter with its weights; contents are not read."""
    return folder.has(CONFIG) and _weights_file(folder) is not None


def open_adapter(name: str, folder: Folder) -> Adapter:
    """Read the configuration of an adapter called ``name``, and the header of its weights.

    Raises:
        CheckpointError: it is missing, malformed, or of a kind that cannot be merged into weights
        or is not supported.
    """
    directory = folder.name
    if not folder.has(CONFIG):
        what, remedy = "is it an adapter's directory?", ""
        if folder.has("config.json"):
            what, remedy = "it is a model", "name it under 'models'"
        elif folder.has(_DIFFUSERS):
            what = f"it is a LoRA of a diffusers pipeline ({_DIFFUSERS}), for several models"
            remedy = "merge it with diffusers (fuse_lora, save_pretrained) first"
        raise CheckpointError(f"'{directory}' has no {CONFIG}: {what}", remedy=remedy)
    config = read_object(folder, CONFIG)
    of_mlx = is_of_mlx(config)
    if not of_mlx:
        check_kind(directory, config)
    weights = _weights_file(folder)
    if weights is None:
        raise CheckpointError(f"'{directory}' has no {WEIGHTS[0]}", remedy=COPY_AGAIN)
    checkpoint = open_files(folder, config, {weights: set()})
    changes, of_parameters = (mlx_changes(checkpoint), {}) if of_mlx else _changes(checkpoint)
    base, revision = (
        value if isinstance(value, str) and value else None
        for value in (
            config.get("model" if of_mlx else "base_model_name_or_path"),
            config.get("revision"),
        )
    )
    return Adapter(name, checkpoint, base, revision, changes, of_parameters)


def _weights_file(folder: Folder) -> str | None:
    return next((name for name in WEIGHTS if folder.has(name)), None)


def _target_parameters(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("target_parameters")
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def _changes(
    checkpoint: Checkpoint,
) -> tuple[dict[str, ModuleChange], dict[str, tuple[FactorPair, ...]]]:
    """The change of each module, and the factors of parameters."""
    owners = {target.rpartition(".")[0] for target in _target_parameters(checkpoint.config)}
    parts: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, dict[str, StoredTensor]] = {}
    nested: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    for name, tensor in checkpoint.tensors.items():
        path = name.removeprefix(_PREFIX)
        match = _PART.fullmatch(path)
        if match is not None:
            part = match["matrix"] and f"{match['matrix']}.{match['of']}"
            part = part or match["embedding"] or match["magnitude"] or match["rows"]
            module, depth = _unwrapped(match["module"])
            if part in _MATRICES and any(
                not owner or module == owner or module.endswith(f".{owner}") for owner in owners
            ):
                nested.setdefault(module, {}).setdefault(depth, {})[part] = tensor
            else:
                parts.setdefault(module, {})[part] = tensor
        elif ".original_module." not in path and _NOT_MERGED.search(path) is None:
            if _KOHYA.search(path):
                raise CheckpointError(
                    f"'{checkpoint.folder.name}' has '{name}', as kohya's scripts name a LoRA",
                    remedy="convert it to peft's format first",
                )
            if ".lora_" in path:
                raise CheckpointError(
                    f"'{checkpoint.folder.name}' has '{name}', which is of a kind of LoRA that is "
                    "not known",
                    remedy=WITH_PEFT,
                )
            module, _, last = _WRAPPER_PARTS.sub("", path).rpartition(".")
            replaced.setdefault(module, {})[last] = tensor
    changes = {
        module: _change(checkpoint, module, parts.get(module, {}), replaced.get(module, {}))
        for module in dict.fromkeys((*parts, *replaced))
    }
    of_parameters = {
        module: tuple(
            FactorPair(*_both(checkpoint, module, of[depth], _MATRICES))
            for depth in sorted(of, reverse=True)
        )
        for module, of in nested.items()
    }
    return changes, of_parameters


def _unwrapped(module: str) -> tuple[str, int]:
    """A module's name without the ``base_layer`` at its end, and how often it is there."""
    depth = 0
    while module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    return module, depth


def _change(
    checkpoint: Checkpoint,
    module: str,
    parts: Mapping[str, StoredTensor],
    replaced: Mapping[str, StoredTensor],
) -> ModuleChange:
    rows = parts.get("trainable_tokens_delta")
    return ModuleChange(
        product=_product(checkpoint, module, parts),
        rows=ReplacedRows(rows, _replaced_rows(checkpoint, module, rows))
        if rows is not None
        else None,
        replaced=replaced,
    )


def _product(
    checkpoint: Checkpoint, module: str, parts: Mapping[str, StoredTensor]
) -> LowRankProduct | None:
    config, directory = checkpoint.config, checkpoint.folder.name
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else _MATRICES
    if not any(name in parts for name in names):
        return None
    down, up = _both(checkpoint, module, parts, names)
    rank = _module_setting(config, module, "rank_pattern", "r", directory)
    alpha = _module_setting(config, module, "alpha_pattern", "lora_alpha", directory)
    if len(down.shape) < 2 or len(up.shape) < 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"'{directory}': the matrices for '{module}' are {_shape_text(down)} and "
            f"{_shape_text(up)}, but their rank in the adapter's configuration is {rank:g}",
            remedy=COPY_AGAIN,
        )
    lengths = parts.get("lora_magnitude_vector")
    if lengths is not None and len(down.shape) != 2:
        raise CheckpointError(
            f"'{directory}': DoRA of '{module}', which is not a matrix, cannot be merged",
            remedy=WITH_PEFT,
        )
    return LowRankProduct(
        down=down,
        up=up,
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        weight_transposed=embedding or bool(config.get("fan_in_fan_out")),
        lengths=lengths,
        bias=parts.get("lora_B.bias"),
    )


def _both(
    checkpoint: Checkpoint, module: str, parts: Mapping[str, StoredTensor], names: tuple[str, str]
) -> tuple[StoredTensor, StoredTensor]:
    """The two factors of a product."""
    down, up = (parts.get(name) for name in names)
    if down is None or up is None:
        raise CheckpointError(
            f"'{checkpoint.folder.name}' has only one of the two matrices for '{module}'",
            remedy=COPY_AGAIN,
        )
    return down, up


def _shape_text(tensor: StoredTensor) -> str:
    return "x".join(map(str, tensor.shape))


def _module_setting(
    config: Mapping[str, Any], module: str, pattern: str, key: str, directory: str
) -> float:
    """A number for a module: from the first pattern that matches its name, or the default."""
    value = config.get(key, 8)
    patterns = config.get(pattern) or {}
    if isinstance(patterns, Mapping):
        found = (each for text, each in patterns.items() if _matches(text, module, directory))
        value = next(found, value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (key == "r" and not value > 0):
        wanted = "a positive number" if key == "r" else "a number"
        raise CheckpointError(
            f"'{directory}/{CONFIG}': '{key}' is {value!r}, not {wanted}", remedy=COPY_AGAIN
        )
    return float(value)


def _matches(pattern: object, module: str, directory: str) -> bool:
    """Whether a pattern matches a module's name or its last parts.

    A pattern is an untrusted regular expression, so it is restricted to expressions that match
    quickly: at most one repetition may be of more than a single character class.
    """
    if not isinstance(pattern, str):
        return False
    if module == pattern or module.endswith(f".{pattern}"):
        return True
    if (
        len(pattern) > 1000
        or len(re.findall(r"[*+{]", pattern)) > 8
        or re.search(r"[)\]}*+?]\s*[*+{]", pattern.replace("]*", "").replace("]+", ""))
    ):
        raise CheckpointError(
            f"'{directory}/{CONFIG}': the pattern {pattern[:80]!r} is too complex to match safely",
            remedy="write the names of its modules instead",
        )
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None
    except re.error:
        return False


def _replaced_rows(checkpoint: Checkpoint, module: str, rows: StoredTensor) -> tuple[int, ...]:
    """The rows of a module's weight that an adapter replaces."""
    where = f"'{checkpoint.folder.name}/{CONFIG}'"
    key = "token_indices" if "token_indices" in checkpoint.config else "trainable_token_indices"
    given = checkpoint.config.get(key)
    if isinstance(given, Mapping):
        last = module.rpartition(".")[2]
        given = given.get(module, given.get(last, next(iter(given.values()), None)))
    if not isinstance(given, list) or not all(type(each) is int and each >= 0 for each in given):
        raise CheckpointError(f"{where}: '{key}' is not a list of token ids", remedy=COPY_AGAIN)
    if len(given) != rows.shape[0]:
        raise CheckpointError(
            f"{where}: '{key}' names {len(given)} tokens of '{module}', the "
            f"weights have {rows.shape[0]}",
            remedy=COPY_AGAIN,
        )
    return tuple(given)
