"""Settings that all tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What a test measures of this process must not guide the plans of other runs. But machine code is
# the same in all of them (its place is named after its sources), and takes a minute to build.
_loops = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mergeloom" / "loops"
_loops.mkdir(mode=0o700, parents=True, exist_ok=True)
_cache = tempfile.TemporaryDirectory(prefix="mergeloom-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name
(Path(_cache.name) / "mergeloom").mkdir()
(Path(_cache.name) / "mergeloom" / "loops").symlink_to(_loops, target_is_directory=True)

# Machines that run tests are often busy: time says nothing about what is tested.
settings.register_profile("mergeloom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mergeloom")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--review", action="store_true", help="write anew what people review")
    parser.addoption(
        "--every-family",
        action="store_true",
        help="judge more families of models, and each by models of two depths too (15 minutes)",
    )
