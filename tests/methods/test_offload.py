"""Every method in one run on a device that torch computes on: bit for bit on the fake one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.assignment import Reason
from mergeloom.methods.ops.arithmetic import TORCH
from tests.engine.fake_device import accelerator
from tests.engine.run.test_device_worker import Memory, Opener, machine, run
from tests.methods.every_method import every_method

CPU = Machine(2, 300 * MIB, 0, TORCH, TORCH)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return every_method(tmp_path_factory.mktemp("in"), [F32])


@pytest.fixture(scope="module")
def expected(graph: Graph) -> Memory:
    return run(graph, CPU).sink


def test_every_method_gives_the_bytes_of_the_cpu_on_the_fake_device(
    graph: Graph, expected: Memory
) -> None:
    opener = Opener()
    ran = run(graph, machine(accelerator(1 << 30)), opener)
    assert {scheduled.assignment.reason for scheduled in ran.schedule.merges} == {Reason.ASKED_FOR}
    assert not ran.warnings
    assert ran.sink == expected
    # Kernels allocate no more by themselves than they declared.
    assert opener.opened[0].peak < 1 << 29


def test_methods_that_do_not_fit_on_the_fake_device_give_the_same_bytes_on_the_cpu(
    tmp_path: Path,
) -> None:
    graph = every_method(tmp_path, [F32], ["rows"])
    small = replace(machine(accelerator(200 * MIB)), arithmetic=TORCH)
    assert run(graph, small, Opener()).sink == run(graph, CPU).sink
