"""Every method on small tensors: what runs together gives the bytes of what runs by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import BF16, F16, F32, DType
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Merge
from mergeloom.engine.plan.bundles import bundle_merges
from mergeloom.engine.plan.schedule import schedule
from tests.engine.support import GraphMaker, job, sha256, spec
from tests.methods.test_devices import VARIANTS, kernel_of

SHAPES = ((24, 40), (300,), (130, 70))


def test_a_bundle_gives_the_bytes_of_its_merges_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = GraphMaker(tmp_path)
    outputs: dict[str, tuple[Merge, DType]] = {}
    for number, (name, settings) in enumerate(VARIANTS):
        for shape in SHAPES:
            loads = [maker.loads(dtype, [shape], gap=2)[0] for dtype in (BF16, BF16, F16, F32)]
            kernel, count = kernel_of(name, settings, shape)
            merge = maker.builder.merge(loads[:count], kernel, name)
            outputs[f"{name}.{number}.{shape}"] = merge, (BF16, F32, F16)[number % 3]
    graph = maker.graph(outputs)
    machine = spec(2, 300 * MIB, 0)
    made = schedule(graph, None, machine)
    bundles = [group for group in bundle_merges(made) if not isinstance(group, int)]
    assert sum(map(len, bundles)) == len(made.merges)
    assert any(merge.flow.memos for group in bundles for merge in group)
    jobs.run(job(graph), tmp_path / "together", jobs.Options(machine=machine))
    monkeypatch.setattr("mergeloom.engine.plan.bundles.BUNDLE_BYTES", 0)
    jobs.run(job(graph), tmp_path / "alone", jobs.Options(machine=machine))
    assert sha256(tmp_path / "together") == sha256(tmp_path / "alone")
