"""The report of ``inspect``: the contents of a checkpoint."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeloom.planners.models.checkpoint_outline import StackOutline, checkpoint_outline
from mergeloom.planners.models.model import StoredModel
from mergeloom.planners.models.token_weights import Head
from mergeloom.report import plan_records, records

_MAX_BYTES = 256 << 20
"""Maximum size in bytes of a tokenizer file that is read."""

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
)


def inspect_report(model: StoredModel) -> records.InspectReport:
    """The report of a checkpoint, from its headers and small files only."""
    checkpoint, config = model.checkpoint, model.config
    outline = checkpoint_outline(model)
    entries = checkpoint.described
    dtypes: Counter[str] = Counter()
    for entry in entries.values():
        dtypes[entry.dtype.name] += entry.dtype.nbytes(math.prod(entry.shape))
    names = config.get("architectures")
    kind = config.get("model_type")
    return records.InspectReport(
        name=model.name,
        directory=checkpoint.folder.name,
        architectures=tuple(map(str, names)) if isinstance(names, list) else (),
        model_type=kind if isinstance(kind, str) else None,
        vocabulary=_vocabulary_size(model),
        tokenizer=_tokenizer_report(checkpoint.directory),
        quantisation=_quantisation(config),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        bytes=checkpoint.nbytes,
        dtypes=dict(dtypes),
        tied=None if model.tokens.kind is Head.NONE else model.tokens.kind is Head.TIED,
        declared=outline.declared,
        stacks=tuple(map(_stack_report, outline.stacks)),
        shards=tuple(
            plan_records.Shard(Path(source.name).name, source.size) for source in checkpoint.sources
        ),
        tensors={
            name: records.StoredTensor(entry.dtype.name, entry.shape)
            for name, entry in entries.items()
        },
    )


def _stack_report(stack: StackOutline) -> records.StackReport:
    return records.StackReport(
        name=stack.name,
        prefix=stack.prefix,
        layers=stack.layers,
        before=stack.before,
        templates=tuple(
            records.Template(each.suffix, each.shape, each.dtype, each.layers)
            for each in stack.layer_tensors
        ),
        after=stack.after,
        tensors=stack.tensors,
    )


def _vocabulary_size(model: StoredModel) -> int | None:
    """The number of rows of the embedding, or else the size that the configuration declares."""
    embedding = model.tokens.embedding
    if embedding is not None:
        return model.shape(embedding)[0]
    for config in (model.config, model.config.get("text_config")):
        declared = config.get("vocab_size") if isinstance(config, Mapping) else None
        if isinstance(declared, int):
            return declared
    return None


def _quantisation(config: Mapping[str, Any]) -> str | None:
    """The method and, if declared, the number of bits; ``None`` if nothing is quantised."""
    for key in ("quantization_config", "quantization", "compression_config"):
        found = config.get(key)
        if isinstance(found, Mapping):
            method = found.get("quant_method") or found.get("format") or key
            bits = found.get("bits")
            return f"{method}, {bits} bits" if isinstance(bits, int) else str(method)
    return None


def _tokenizer_report(directory: Path) -> records.TokenizerReport | None:
    files = sorted({path.name for pattern in _TOKENIZER_FILES for path in directory.glob(pattern)})
    if not files:
        return None
    kind = _json_object(directory / "tokenizer_config.json").get("tokenizer_class")
    entries = _number_of_tokens(_json_object(directory / "tokenizer.json"))
    return records.TokenizerReport(tuple(files), kind if isinstance(kind, str) else None, entries)


def _number_of_tokens(tokenizer: Mapping[str, Any]) -> int | None:
    """One more than the largest token id; ``None`` if there is no vocabulary."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    found = model.get("vocab") if isinstance(model, Mapping) else None
    largest = -1
    if isinstance(found, list):
        largest = len(found) - 1
    elif isinstance(found, Mapping):
        largest = max((i for i in found.values() if isinstance(i, int)), default=-1)
    else:
        return None
    for token in added if isinstance(added, list) else ():
        number = token.get("id") if isinstance(token, Mapping) else None
        largest = max(largest, number) if isinstance(number, int) else largest
    return largest + 1


def _json_object(path: Path) -> Mapping[str, Any]:
    """A small JSON object; empty if it cannot be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
