"""What each thread did over time, in few numbers."""

from __future__ import annotations

import threading
import time

import pytest

from mergeloom.engine.run.lanes import CELLS, Lanes, _Strip


def test_a_task_fills_the_cells_of_its_time() -> None:
    strip = _Strip("worker 1", began=100.0, threads=1, seconds=1.0)
    strip.add(100.5, 102.25, "a")
    strip.add(102.25, 103.0, "b")
    lane = strip.lane()
    assert lane.busy == (0.5, 1.0, 1.0, 0.0)
    assert lane.names[:3] == ("a", "a", "b")


def test_a_long_run_keeps_the_number_of_cells_and_all_time() -> None:
    strip = _Strip("worker 1", began=0.0, threads=1, seconds=1 / 256)
    for second in range(5000):
        strip.add(second, second + 0.5, f"task {second}")
    lane = strip.lane()
    assert len(lane.busy) == len(lane.names) <= CELLS
    assert sum(strip.busy) == pytest.approx(2500)
    assert sum(lane.busy) * lane.seconds == pytest.approx(2500, rel=0.01)
    strip.add(5000.0, 90000.0, "long")
    assert len(strip.lane().busy) <= CELLS
    assert sum(strip.busy) == pytest.approx(87500)


def test_threads_have_lanes_of_their_kind_and_many_share_them() -> None:
    lanes = Lanes()

    def work(number: int) -> None:
        with lanes.lane("reader"):
            lanes.begin(f"task {number}")
            time.sleep(0.01)
            lanes.rest()
            lanes.rest()  # nothing to end
            lanes.begin("the last")  # ended with the lane

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with lanes.lane("writer"):
        pass
    lanes.begin("without a lane")
    lanes.rest()
    found = lanes.recorded()
    assert [lane.title for lane in found] == [f"reader {n + 1}" for n in range(8)]
    for lane in found:
        assert all(0 <= share <= 1 for share in lane.busy)
        assert sum(lane.busy) > 0
