"""Each family of models is copied, averaged and stacked rightly, or refused with the reason.

``pytest tests/families --every-family`` judges more families, and stacks and merges layers of two
models of different depths too: what it prints is to be read, since layers of different kinds are
refused, rightly, where two models of one depth can be stacked.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.families.family import Family
from tests.families.judge import ALIKE, Depths, problems
from tests.families.known import KNOWN
from tests.families.tables import EVERY_FAMILY, FAMILIES
from tests.families.tiny import DEPTH


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


DEEPER = DEPTH + 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every family and pair of depths, or those that are judged each time."""
    if "depths" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-family")
        families = EVERY_FAMILY if every else FAMILIES
        pairs = (ALIKE, (DEPTH, DEEPER), (DEEPER, DEPTH)) if every else (ALIKE,)
        metafunc.parametrize("depths", pairs, ids=["alike", "B deeper", "A deeper"][: len(pairs)])
        metafunc.parametrize("family", families, ids=lambda family: family.name)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_family_is_merged_correctly(family: Family, depths: Depths, tmp_path: Path) -> None:
    faults = []
    for what, wrong in problems(family, tmp_path, depths):
        known = KNOWN.get(f"{family.name}: {what}")
        if known is not None and not wrong:
            faults.append(f"{what}: is right now, delete it from known.py: {known}")
        elif known is None:
            faults += [f"{what}: {fault}" for fault in wrong]
    assert not faults, "\n".join(faults)


def test_no_family_is_listed_twice() -> None:
    names = [family.name for family in EVERY_FAMILY]
    assert sorted(set(names)) == sorted(names)


def test_known_faults_belong_to_a_family() -> None:
    judged = {
        f"{family.name}: {what}"
        for family in FAMILIES
        for what in ("whole", *(f"stack {number}" for number in range(len(family.stacks))))
    }
    assert KNOWN.keys() <= judged
