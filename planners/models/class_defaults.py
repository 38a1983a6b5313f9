"""What transformers' configuration classes take for what a ``config.json`` does not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("class_defaults.json")
"""By key and value (as JSON), the model types; `scripts/run class_defaults` writes it."""

NOTHING = "nothing"
"""The key of model types that are known and take no such value."""


@cache
def class_defaults(family: str) -> Mapping[str, Any] | None:
    """Values by key, of those that decide what layers compute; ``None`` of an unknown model type.

    What was looked up stays: the table is part of the program.
    """
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
