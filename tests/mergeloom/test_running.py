"""A merge in a thread of its own: progress as an iterator, cancelled from any thread."""

from __future__ import annotations

import dataclasses
import threading
import time
import warnings
from pathlib import Path

import pytest

import mergeloom
from mergeloom import LoomError, LoomWarning, Progress, RunError


def test_progress_is_an_iterator_of_immutable_snapshots(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = mergeloom.start(config, tmp_path / "out", ram="2GiB")
    snapshots = list(run)
    assert snapshots
    assert all(isinstance(each, Progress) for each in snapshots)
    assert [each.share for each in snapshots] == sorted(each.share for each in snapshots)
    assert (snapshots[-1].share, snapshots[-1]) == (1, run.progress)
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshots[0].seconds = 0.0
    assert run.done
    assert not run.cancelled
    assert run.result().report == mergeloom.read_report(tmp_path / "out")
    assert mergeloom.verify(tmp_path / "out").sound
    assert repr(run) == f"<RunningMerge into '{tmp_path / 'out'}': finished>"
    assert list(run) == [run.progress]  # who comes late sees how it ended
    assert capfd.readouterr() == ("", "")


def test_a_finished_merge_has_no_progress(config: Path, tmp_path: Path) -> None:
    mergeloom.merge(config, tmp_path / "out")
    run = mergeloom.start(config, tmp_path / "out")
    assert list(run) == []
    assert run.result().outcome.was_finished


def test_a_running_merge_is_cancelled_from_another_thread_and_continues(
    config: Path, tmp_path: Path
) -> None:
    started = threading.Event()

    def progressed(progress: Progress) -> None:
        started.wait(20)
        other = threading.Thread(target=run.cancel)
        other.start()
        other.join()

    run = mergeloom.start(
        config, tmp_path / "out", observer=mergeloom.Observer(progressed=progressed)
    )
    started.set()
    list(run)  # ends without an error
    assert run.cancelled
    assert repr(run).endswith(": cancelled>")
    with pytest.raises(RunError, match="was cancelled; what is finished is kept") as error:
        run.result()
    assert error.value.code == "cancelled"
    assert mergeloom.start(config, tmp_path / "out").result().warnings == ()
    assert mergeloom.verify(tmp_path / "out").sound


def test_leaving_the_loop_early_cancels(config: Path, tmp_path: Path) -> None:
    def stop() -> bool:
        time.sleep(0.02)
        return False

    run = mergeloom.start(config, tmp_path / "out", observer=mergeloom.Observer(cancelled=stop))
    for _ in run:
        break
    assert run.done
    assert run.cancelled or mergeloom.status(tmp_path / "out").condition == "finished"


def test_an_error_is_raised_by_the_loop_and_by_the_result(config: Path, tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="no such file"):
        mergeloom.start(tmp_path / "nowhere.yml", tmp_path / "out")
    with pytest.raises(LoomError, match="belong to the plan"):
        mergeloom.start(mergeloom.plan(config), tmp_path / "out", ram="4GiB")
    planned = mergeloom.plan(config)
    weights = tmp_path / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.write_bytes(bytes(content[:-8]))  # after it was planned
    run = mergeloom.start(planned, tmp_path / "out")
    with pytest.raises(LoomError) as looped:
        list(run)
    with pytest.raises(LoomError) as asked:
        run.result()
    assert looped.value is asked.value
    assert "failed: " in repr(run)


def test_warnings_of_the_run_are_in_the_result(config: Path, tmp_path: Path) -> None:
    mergeloom.merge(config, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mergeloom.start(config, tmp_path / "out").result()
    (warning,) = caught
    assert warning.category is LoomWarning
    assert warning.filename == __file__
    assert "was finished, but 'model.safetensors' has 0 bytes" in str(warning.message)
