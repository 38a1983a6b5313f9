"""What an output directory holds, as ``plan`` says it and ``merge`` heeds it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.output.journal import FinishedTensor, Journal, Totals
from mergeloom.engine.output.manifest import VERSION, read_manifest
from mergeloom.engine.storage.digest import ALGORITHM
from tests.mergeloom.support import LINEAR, run


def state(config: Path, out: Path) -> Any:
    found = mergeloom.plan(config, output=out).report.output_state
    assert found is not None
    return found


def merged(config: Path, out: Path, **options: Any) -> bytes:
    mergeloom.merge(config, out, **options)
    return b"".join(path.read_bytes() for path in sorted(out.glob("*.safetensors")))


def interrupt(out: Path, tensors: int) -> None:
    """Leave a finished output as a kill would have that came after some tensors."""
    manifest = read_manifest(out)
    assert manifest is not None
    (out / ".mergeloom" / "manifest.json").unlink()
    for name in manifest.files:
        (out / name).rename(out / f"{name}.partial")
    journal = Journal(out / ".mergeloom" / "journal")
    totals = Totals(len(manifest.tensors), sum(each.nbytes for each in manifest.tensors))
    journal.begin(manifest.fingerprint, manifest.identity, list(manifest.files), totals)
    journal.append(
        FinishedTensor(each.file, each.name, each.digest, each.block_bytes, each.nbytes)
        for each in manifest.tensors[:tensors]
    )
    journal.close()


STATES: dict[str, tuple[Callable[[Path, Path], None], str, str, str]] = {
    "absent": (lambda config, out: None, "absent", "start", "does not exist yet"),
    "empty": (lambda config, out: out.mkdir(), "empty", "start", "an empty directory"),
    "a file": (lambda config, out: out.write_text("x"), "file", "refuse", "is a file"),
    "foreign": (
        lambda config, out: (out.mkdir(), (out / "x").touch())[1],
        "foreign",
        "refuse",
        "was not made by mergeloom",
    ),
    "finished": (
        lambda config, out: merged(config, out) and None,
        "finished",
        "nothing",
        "finished: nothing is left to do",
    ),
    "interrupted": (
        lambda config, out: (merged(config, out), interrupt(out, 5))[1],
        "interrupted",
        "continue",
        "5 of 39 tensors are recorded",
    ),
    "a shard is gone": (
        lambda config, out: (merged(config, out), (out / "model.safetensors").unlink())[1],
        "incomplete",
        "repair",
        "'model.safetensors' is missing",
    ),
    "a shard is cut": (
        lambda config, out: (merged(config, out), os.truncate(out / "model.safetensors", 99))[1],
        "incomplete",
        "repair",
        "'model.safetensors' has 99 bytes",
    ),
    "a link to nothing": (
        lambda config, out: out.symlink_to("nowhere"),
        "absent",
        "refuse",
        "it is a link to 'nowhere', which does not exist",
    ),
    "damaged": (
        lambda config, out: (
            (
                merged(config, out),
                (out / ".mergeloom" / "manifest.json").write_text("{"),
            )[0]
            and None
        ),
        "damaged",
        "refuse",
        "records are damaged",
    ),
}


UNREADABLE = {
    "a journal without a head": ("journal", "{}\n", "is damaged in its first record"),
    "a journal that is a folder": ("journal", None, "cannot read '.*journal': Is a directory"),
    "a manifest that is a folder": ("manifest.json", None, "cannot read '.*manifest.json': Is a"),
    "a manifest without tensors": (
        "manifest.json",
        json.dumps({"version": VERSION, "digests": ALGORITHM, "tensors": 3}),
        "manifest.json' is damaged",
    ),
    "a manifest of another version": ("manifest.json", '{"version": 0}', "another version of this"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_records_that_cannot_be_used_are_refused_by_plan_and_status_and_merge(
    config: Path, tmp_path: Path, case: str
) -> None:
    name, content, words = UNREADABLE[case]
    records = tmp_path / "out" / ".mergeloom"
    records.mkdir(parents=True)
    if content is None:
        (records / name).mkdir()
    else:
        (records / name).write_text(content)
    found = state(config, tmp_path / "out")
    assert (found.condition, found.will) == ("damaged", "refuse")
    assert re.search(words, found.message)
    assert found.remedy or content is None
    assert re.search(words, mergeloom.status(tmp_path / "out").message)
    with pytest.raises(OutputError, match=words) as caught:
        mergeloom.merge(config, tmp_path / "out")
    assert caught.value.remedy == found.remedy.replace("--restart", "restart=True")


@pytest.mark.parametrize("limit", ["journal", "manifest"])
def test_records_that_are_too_large_are_not_read(
    config: Path, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged(config, tmp_path / "out")
    if limit == "journal":
        interrupt(tmp_path / "out", 3)
    monkeypatch.setattr(f"mergeloom.engine.output.{limit}.MAX_BYTES", 10)
    found = state(config, tmp_path / "out")
    assert f"is too large for a {limit}" in found.message
    assert found.remedy == "start over with --restart"


def test_an_output_that_no_directory_can_be_is_refused(config: Path, tmp_path: Path) -> None:
    out = tmp_path / ("a" * 300)
    found = state(config, out)
    assert (found.condition, found.will) == ("unreadable", "refuse")
    assert found.remedy == "choose another output directory"
    for use in (mergeloom.status, lambda path: mergeloom.merge(config, path)):
        with pytest.raises(OutputError, match="File name too long"):
            use(out)


def test_a_merge_that_has_recorded_nothing_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "out" / ".mergeloom").mkdir(parents=True)
    with pytest.raises(OutputError, match="has not recorded any tensor yet: the same merge again"):
        mergeloom.verify(tmp_path / "out")


@pytest.mark.parametrize("case", STATES)
def test_plan_reports_the_state_of_an_output_and_merge_acts_accordingly(
    config: Path, tmp_path: Path, case: str
) -> None:
    prepare, condition, will, words = STATES[case]
    out = tmp_path / "out"
    prepare(config, out)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    found = state(config, out)
    assert (found.condition, found.will) == (condition, will)
    assert words in found.message
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before, "looking changed something"
    assert bool(found.remedy) == (will == "refuse")
    if will == "refuse":
        with pytest.raises(OutputError):
            mergeloom.merge(config, out)
        return
    result = mergeloom.merge(config, out)
    assert result.outcome.was_finished == (will == "nothing")
    assert (result.outcome.resumed > 0) == (will in ("continue", "nothing"))
    assert merged(config, out) == merged(config, tmp_path / "anew")
    assert mergeloom.verify(out).sound


def test_intact_shards_of_a_finished_output_are_kept(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = merged(config, out, max_shard_size="2kB")
    shards = sorted(out.glob("*.safetensors"))
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    result = mergeloom.merge(config, out, max_shard_size="2kB")
    assert 0 < result.outcome.resumed < 39
    assert any("is missing" in str(notice) for notice in result.warnings)
    assert shards[0].stat().st_mtime_ns == kept
    assert merged(config, out, max_shard_size="2kB") == whole


def test_digests_are_checked_on_request(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = merged(config, out)
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (out / "model.safetensors").write_bytes(content)
    assert mergeloom.merge(config, out).outcome.was_finished
    found = run("merge", config, out, "--verify")
    assert found.returncode == 0
    assert (
        "its bytes differ from its digest: missing and wrong parts are written again"
        in found.stderr
    )
    assert (out / "model.safetensors").read_bytes() == whole


def test_a_merge_that_starts_over_says_so(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = merged(config, out)
    (out / ".mergeloom" / "manifest.json").write_text("{")
    found = run("merge", config, out, "--restart")
    assert found.returncode == 0
    assert f"'{out}' holds an earlier merge, which --restart discards" in found.stderr
    assert "damaged" not in found.stderr
    assert (out / "model.safetensors").read_bytes() == whole


def test_changed_side_files_are_written_again_on_request(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged(config, out)
    whole = (out / "config.json").read_bytes()
    (out / "config.json").write_bytes(whole + b"\n")
    assert not mergeloom.verify(out).sound
    assert mergeloom.merge(config, out).outcome.was_finished, "people edit these files"
    assert mergeloom.merge(config, out, verify=True).outcome.resumed == 39
    assert (out / "config.json").read_bytes() == whole
    assert mergeloom.verify(out).sound


def test_the_predicted_peak_includes_what_is_computed_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = mergeloom.merge(config, out).report.predicted
    (out / "config.json").unlink()
    os.utime(tmp_path / "a" / "model.safetensors", (1, 1))
    again = mergeloom.merge(config, out).report.predicted
    assert whole is not None
    assert again is not None
    assert again.read_bytes == 0
    assert again.peak_bytes >= whole.peak_bytes


def test_an_input_that_was_touched_is_not_named_as_a_difference(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merged(config, out)
    os.utime(tmp_path / "a" / "model.safetensors", (1, 1))
    config.write_text(LINEAR.replace("3", "4"))
    with pytest.raises(OutputError) as caught:
        mergeloom.merge(config, out)
    assert "weight (was 3, is 4)" in caught.value.cause
    assert "model.safetensors" not in caught.value.cause


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_refused_output_names_differences_with_both_values(
    config: Path, tmp_path: Path, interrupted: bool
) -> None:
    out = tmp_path / "out"
    merged(config, out)
    if interrupted:
        interrupt(out, 3)
    config.write_text(LINEAR.replace("3", "4"))
    found = state(config, out)
    assert (found.same, found.will) == (False, "refuse")
    assert [
        (each.what, each.there, each.here) for each in found.differences if "weight" in each.what
    ] == [("configuration: models[1].parameters.weight", "3", "4")]
    refused = run("merge", config, out)
    assert refused.returncode == 2
    assert "configuration: models[1].parameters.weight (was 3, is 4)" in refused.stderr
    config.write_text(LINEAR.replace("dtype: bfloat16\n", ""))
    assert "configuration: dtype (was bfloat16, is nothing)" in state(config, out).message


def test_an_input_that_was_only_touched_is_shown_to_be_the_same(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = merged(config, out)
    os.utime(tmp_path / "b" / "model.safetensors")
    found = state(config, out)
    assert (found.condition, found.will) == ("finished", "compare")
    result = mergeloom.merge(config, out)
    assert any("modification time" in str(notice) for notice in result.warnings)
    assert merged(config, out) == whole
    assert state(config, out).will == "nothing"
    interrupt(out, 7)
    os.utime(tmp_path / "a" / "model.safetensors")
    assert mergeloom.merge(config, out).outcome.resumed == 7
    assert merged(config, out) == whole


def test_an_input_that_was_changed_is_refused_though_its_header_is_the_same(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merged(config, out)
    weights = tmp_path / "b" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(OutputError, match=r"'b'.*tensors have other values"):
        mergeloom.merge(config, out)
    assert mergeloom.verify(out).sound


def test_an_unreadable_directory_is_one_line(config: Path, tmp_path: Path) -> None:
    name = "x" * 300  # no directory can be called so; rights do not stop root
    found = run("plan", config, tmp_path / name)
    assert found.returncode == 0, found.stderr
    refused = run("merge", config, tmp_path / name)
    assert refused.returncode in (1, 2)
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in refused.stderr


def test_an_output_inside_an_input_is_warned_about(config: Path, tmp_path: Path) -> None:
    found = run("merge", config, tmp_path / "a" / "merged", "--quiet")
    assert found.returncode == 0
    assert "lies inside the input 'a'" in found.stderr


def test_a_plan_as_json_has_the_state_and_the_disk(config: Path, tmp_path: Path) -> None:
    document = json.loads(run("plan", config, tmp_path / "out", "--json").stdout)
    assert document["output_state"]["condition"] == "absent"
    assert document["disk"]["needed_bytes"] > document["output"]["bytes"]
    assert document["disk"]["free_bytes"] > 0
