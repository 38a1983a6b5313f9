"""Lets the programs in scripts/ be started by any Python."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NEEDED = ("numpy", "psutil", "yaml")


def enter() -> None:
    """Continue in the repository's environment if this Python lacks what the programs need."""
    if all(find_spec(name) for name in _NEEDED):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if Path(sys.prefix) == ROOT / ".venv" or not python.exists():
        sys.exit("error: packages are missing: run scripts/setup")
    os.execv(python, [str(python), *sys.argv])
