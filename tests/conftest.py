"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Machines that run tests are often busy: time says nothing about what is tested.
settings.register_profile("mergeloom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mergeloom")
