"""Defaults of transformers' configuration classes, for values that a ``config.json`` lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("class_defaults.json")
"""The model types by key and default value (as JSON); `scripts/run class_defaults` writes it."""

NO_VALUES = "nothing"
"""The key of model types that are known and have none of these values."""


@cache
def class_defaults(family: str) -> Mapping[str, Any] | None:
    """Default values by key, of those that affect what layers compute; ``None`` for an unknown
    model type. Results are cached, because the table does not change."""
    found: dict[str, Any] = {}
    known = False
    for key, values in _table().items():
        for value, families in values.items():
            if family in families:
                known = True
                found[key] = json.loads(value)
    return found if known else None


@cache
def _table() -> Mapping[str, Mapping[str, frozenset[str]]]:
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        key: {value: frozenset(families.split()) for value, families in values.items()}
        for key, values in content.items()
    }
