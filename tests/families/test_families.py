"""Each family of models is copied, averaged and stacked rightly, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.families.family import Family
from tests.families.judge import problems
from tests.families.known import KNOWN
from tests.families.tables import FAMILIES


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_model_family_is_merged_correctly(family: Family, tmp_path: Path) -> None:
    faults = []
    for what, wrong in problems(family, tmp_path):
        known = KNOWN.get(f"{family.name}: {what}")
        if known is not None and not wrong:
            faults.append(f"{what}: is right now, delete it from known.py: {known}")
        elif known is None:
            faults += [f"{what}: {fault}" for fault in wrong]
    assert not faults, "\n".join(faults)


def test_no_family_is_listed_twice() -> None:
    names = [family.name for family in FAMILIES]
    assert sorted(set(names)) == sorted(names)


def test_known_faults_belong_to_a_family() -> None:
    judged = {
        f"{family.name}: {what}"
        for family in FAMILIES
        for what in ("whole", *(f"stack {number}" for number in range(len(family.stacks))))
    }
    assert KNOWN.keys() <= judged
