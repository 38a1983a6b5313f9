"""What the tests of the front door share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mergeloom.support import LINEAR
from tests.planners.support import llamas


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A linear merge of two small models, ``a`` and ``b``, beside its configuration."""
    llamas(tmp_path, "ab")
    path = tmp_path / "merge.yml"
    path.write_text(LINEAR)
    return path
