"""The report of ``inspect``: the contents of a checkpoint."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeloom.planners.models.architecture import Tower, declared_layers
from mergeloom.planners.models.model import StoredModel
from mergeloom.planners.models.token_weights import Head
from mergeloom.report import plan_records, records

_LARGEST = 256 << 20
"""Maximum size in bytes of a tokenizer file that is read."""

_TOKENIZERS = (
    "tokenizer*.json",
    "tokenizer.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
)


def inspect_report(model: StoredModel) -> records.InspectReport:
    """The report of a checkpoint, from its headers and small files."""
    checkpoint, config = model.checkpoint, model.config
    entries = checkpoint.tensors
    dtypes: Counter[str] = Counter()
    for entry in entries.values():
        dtypes[entry.dtype.name] += entry.bytes.nbytes
    names = config.get("architectures")
    kind = config.get("model_type")
    return records.InspectReport(
        name=model.name,
        directory=checkpoint.folder.name,
        architectures=tuple(map(str, names)) if isinstance(names, list) else (),
        model_type=kind if isinstance(kind, str) else None,
        vocabulary=_vocabulary(model),
        tokenizer=_tokenizer(checkpoint.directory),
        quantisation=_quantisation(config),
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        bytes=checkpoint.nbytes,
        dtypes=dict(dtypes),
        tied=None if model.tokens.kind is Head.NONE else model.tokens.kind is Head.TIED,
        declared={".".join(path): number for path, number in declared_layers(config)},
        stacks=tuple(_stack(tower, model) for tower in model.architecture.towers),
        shards=tuple(
            plan_records.Shard(Path(source.name).name, source.size) for source in checkpoint.sources
        ),
        tensors={
            name: records.StoredTensor(entry.dtype.name, entry.shape)
            for name, entry in entries.items()
        },
    )


def _stack(tower: Tower, model: StoredModel) -> records.StackReport:
    return records.StackReport(
        name=tower.name,
        prefix=tower.prefix,
        layers=tower.layers,
        before=tower.before,
        templates=tuple(
            records.Template(suffix, shape, dtype, layers)
            for (suffix, shape, dtype), layers in _templates(tower, model).items()
        ),
        after=tower.after,
        tensors=tuple(tower.names()),
    )


def _templates(tower: Tower, model: StoredModel) -> Counter[tuple[str, tuple[int, ...], str]]:
    templates: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for layer in range(tower.layers + len(tower.beyond)):
        for suffix in tower.layer_suffixes(layer):
            name = tower.layer_name(layer, suffix)
            templates[suffix, model.shape(name), model.dtype(name).name] += 1
    return templates


def _vocabulary(model: StoredModel) -> int | None:
    embedding = model.tokens.embedding
    if embedding is not None:
        return model.shape(embedding)[0]
    for config in (model.config, model.config.get("text_config")):
        declared = config.get("vocab_size") if isinstance(config, Mapping) else None
        if isinstance(declared, int):
            return declared
    return None


def _quantisation(config: Mapping[str, Any]) -> str | None:
    for key in ("quantization_config", "quantization", "compression_config"):
        found = config.get(key)
        if isinstance(found, Mapping):
            method = found.get("quant_method") or found.get("format") or key
            bits = found.get("bits")
            return f"{method}, {bits} bits" if isinstance(bits, int) else str(method)
    return None


def _tokenizer(directory: Path) -> records.TokenizerReport | None:
    files = sorted({path.name for pattern in _TOKENIZERS for path in directory.glob(pattern)})
    if not files:
        return None
    kind = _json(directory / "tokenizer_config.json").get("tokenizer_class")
    entries = _entries(_json(directory / "tokenizer.json"))
    return records.TokenizerReport(tuple(files), kind if isinstance(kind, str) else None, entries)


def _entries(tokenizer: Mapping[str, Any]) -> int | None:
    """One more than the largest token id."""
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


def _json(path: Path) -> Mapping[str, Any]:
    """A small JSON object; empty if it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
