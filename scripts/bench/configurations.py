"""Configurations for mergeloom and mergekit, one for each merge method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TWO = ("linear", "karcher", "slerp")
_VALUES = {"weight": 0.4, "density": 0.5, "t": 0.5}


def configuration(
    method: Mapping[str, Any],
    base: Path,
    tunes: Sequence[Path],
    layers: int,
    *,
    everything: bool = False,
) -> dict[str, Any]:
    """A typical configuration of ``method``.

    Args:
        method: the output of ``mergeloom methods NAME --json``.
        base: directory of the base.
        tunes: directories of its fine-tunes, at least two.
        layers: number of layers of each.
        everything: use all fine-tunes that the method accepts and, where allowed, a base, instead
            of the usual number.
    """
    name = method["name"]
    document: dict[str, Any] = {"merge_method": name, "dtype": "bfloat16"}
    if name == "passthrough":
        part = layers * 3 // 4
        ranges = [(tunes[0], [0, part]), (tunes[1], [layers - part, layers])]
        document["slices"] = [
            {"sources": [{"model": str(model), "layer_range": span}]} for model, span in ranges
        ]
        return document
    if name == "slerp":
        document |= {"models": [{"model": str(model)} for model in tunes[:2]]}
        return document | {"base_model": str(tunes[0]), "parameters": {"t": 0.5}}
    maximum = method["models"][1] or len(tunes)
    count = min(maximum, 2 if name in _TWO and not everything else len(tunes))
    document["models"] = [
        {"model": str(model)} | _parameters(method["model_parameters"]) for model in tunes[:count]
    ]
    if method["base_model"] in (("required", "optional") if everything else ("required",)):
        document["base_model"] = str(base)
    return document | _parameters(method["parameters"])


def model_directories(document: Mapping[str, Any]) -> list[Path]:
    """Directories of the models in a configuration, in order, without duplicates."""
    entries = document.get("models") or [
        source for part in document["slices"] for source in part["sources"]
    ]
    names = [entry["model"] for entry in entries]
    if "base_model" in document:
        names.append(document["base_model"])
    return [Path(name) for name in dict.fromkeys(names)]


def _parameters(described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = {
        parameter["name"]: _VALUES[parameter["name"]]
        for parameter in described
        if parameter["name"] in _VALUES
    }
    return {"parameters": values} if values else {}
