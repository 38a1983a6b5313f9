"""Converts a configuration given as Python data to YAML text."""

from __future__ import annotations

import enum
import numbers
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml

from mergeloom.engine.base.errors import ConfigError, Place
from mergeloom.planners.config.yaml_values import MAX_DEPTH


def yaml_text(data: Mapping[Any, Any], file: str) -> str:
    """``data`` as YAML; it may contain paths, enumerations, dtypes, numpy arrays and numbers.

    Raises:
        ConfigError: a value cannot be written as YAML; the message says where.
    """
    return yaml.safe_dump(_yaml_data(data, file, "", 0), sort_keys=False, allow_unicode=True)


def _yaml_data(value: Any, file: str, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ConfigError(
            "this is nested too deeply for a configuration", place=Place(file, 0, path[:80])
        )
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return _yaml_data(value.value, file, path, depth)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if type(value).__name__.endswith(("dtype", "DType")):  # torch.bfloat16, or one of numpy's
        return str(value).rpartition(".")[2]
    if isinstance(value, Mapping):
        return {
            _yaml_data(key, file, path, depth + 1): _yaml_data(
                item, file, f"{path}.{key}".lstrip("."), depth + 1
            )
            for key, item in value.items()
        }
    if hasattr(value, "tolist"):  # numbers and arrays of numpy, and tensors
        return _yaml_data(value.tolist(), file, path, depth + 1)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        return [_yaml_data(item, file, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ConfigError(
        f"a configuration cannot have a value of type {type(value).__name__}",
        place=Place(file, 0, path),
        remedy="use text, numbers, true or false, lists and mappings",
    )
