"""``init``, ``status``, ``report``, ``clean``, ``explain --lines``, lines of progress as JSON, and
``mergekit-yaml``."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom.cli import app
from mergeloom.engine.base.errors import ConfigError, LoomError, OutputError
from mergeloom.engine.hardware.profile import cache_directory
from mergeloom.engine.output.lock import lock_directory
from mergeloom.mergekit_flags import MergekitFlags, translate_flags
from mergeloom.options import OutputOptions, ResourceOptions
from tests.mergeloom.support import LINEAR, run
from tests.mergeloom.test_states import interrupt
from tests.planners.support import llama, llamas


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What a command writes to stdout and to stderr."""
    capsys.readouterr()
    app([str(each) for each in arguments], standalone_mode=False)
    found = capsys.readouterr()
    return found.out, found.err


# --- init -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "options", "method", "layers"),
    [
        ("ab", {}, "slerp", 4),
        ("abc", {}, "linear", 4),
        ("bc", {"base": "a"}, "ties", 4),
        ("b", {"base": "a"}, "slerp", 4),
        ("a", {}, "passthrough", 4),
        ("ab", {"stack": True}, "passthrough", 8),
        *(
            ("bc", {"base": "a", "method": name}, name, 4)
            for name in ("della", "breadcrumbs", "sce", "model_stock", "ramplus_tl", "nuslerp")
        ),
        ("b", {"base": "a", "method": "nearswap"}, "nearswap", 4),
        ("ab", {"method": "ties"}, "ties", 4),
        ("ab", {"method": "karcher"}, "karcher", 4),
    ],
)
def test_a_configuration_written_by_init_can_be_planned_unchanged(
    tmp_path: Path, models: str, options: dict[str, Any], method: str, layers: int
) -> None:
    llamas(tmp_path, "abc")
    if "base" in options:
        options = {**options, "base": tmp_path / options["base"]}
    text = mergeloom.init([tmp_path / name for name in models], **options)
    path = tmp_path / "merge.yml"
    path.write_text(text)
    planned = mergeloom.plan(path, strict=True)
    assert (planned.report.method, planned.report.output.layers) == (method, layers)
    assert planned.warnings == ()


def test_init_explains_what_is_wrong(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    llama(tmp_path / "deep", layers=6)
    models = [tmp_path / name for name in "abc"]
    with pytest.raises(ConfigError, match="'slerp' merges 1 model beside a base model, here are 2"):
        mergeloom.init(models, method="slerp")
    with pytest.raises(ConfigError, match="unknown merge method 'tis': did you mean 'ties'"):
        mergeloom.init(models, method="tis")
    with pytest.raises(ConfigError, match=r"'.*deep' has 6: 'mergeloom init --stack'"):
        mergeloom.init([models[0], tmp_path / "deep"])
    assert "layer_range: [0, 6]" in mergeloom.init([models[0], tmp_path / "deep"], stack=True)


def test_init_never_replaces_a_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "a", tmp_path / "b"
    with pytest.raises(OutputError, match="exists already"):
        said(capsys, "init", *models, "-o", config)
    assert config.read_text() == LINEAR
    out, err = said(capsys, "init", *models, "-o", config, "--force")
    assert (out, config.read_text().startswith("# A merge of")) == ("", True)
    assert "wrote" in err
    out, _ = said(capsys, "init", *models, "-o", "-")
    assert out == config.read_text()


def test_paths_written_by_init_are_relative_to_the_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    text = mergeloom.init(["a", "b"], folder="elsewhere")
    assert f"model: {tmp_path / 'a'}" in text
    assert "model: a\n" in mergeloom.init(["a", "b"], folder=tmp_path)


# --- set --------------------------------------------------------------------------------------


def test_settings_change_the_output_and_are_recorded(config: Path, tmp_path: Path) -> None:
    plain = mergeloom.plan(config).plan.fingerprint
    setting = "models[1].parameters.weight"
    result = mergeloom.merge(config, tmp_path / "out", settings={setting: 1})
    assert result.report.fingerprint != plain
    written = tmp_path / "out" / "mergeloom_config.yml"
    assert written.read_text().startswith("# merge.yml with\n# --set models[1].parameters.weight=1")
    shutil.copy(written, tmp_path / "again.yml")
    again = mergeloom.plan(tmp_path / "again.yml").plan
    assert (
        again.graph.fingerprint()
        == mergeloom.plan(config, settings=[f"{setting}=1"]).plan.graph.fingerprint()
    )


def test_a_configuration_may_be_json(config: Path, tmp_path: Path) -> None:
    document = {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": 1}},
            {"model": "b", "parameters": {"weight": 3}},
        ],
        "dtype": "bfloat16",
    }
    path = tmp_path / "merge.json"
    path.write_text(json.dumps(document, indent=2))
    assert (
        mergeloom.plan(path).plan.graph.fingerprint()
        == mergeloom.plan(config).plan.graph.fingerprint()
    )
    path.write_text(json.dumps(document | {"dtype": "bf17"}, indent=2))
    with pytest.raises(ConfigError, match=r"merge.json:17: dtype: 'bf17' is not a dtype"):
        mergeloom.plan(path)


# --- status, report, clean --------------------------------------------------------------------


def test_status_of_each_state(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="does not exist: name a directory that"):
        mergeloom.status(out)
    mergeloom.merge(config, out)
    found = mergeloom.status(out)
    assert (found.condition, found.share, found.tensors) == ("finished", 1.0, 39)
    assert (
        found.bytes == found.finished_bytes == mergeloom.plan(config).report.output.parameters * 2
    )
    (out / "config.json").unlink()
    assert mergeloom.status(out).condition == "incomplete"
    assert "'config.json' is missing" in mergeloom.status(out).message
    (out / ".mergeloom" / "manifest.json").write_text("{")
    assert mergeloom.status(out).condition == "damaged"


def test_status_tells_the_share_of_an_interrupted_merge(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mergeloom.merge(config, out)
    whole = mergeloom.status(out)
    interrupt(out, 20)
    found = mergeloom.status(out)
    assert (found.condition, found.finished_tensors, found.tensors) == ("interrupted", 20, 39)
    assert found.bytes == whole.bytes
    assert found.share is not None
    assert 0 < found.share == found.finished_bytes / (found.bytes or 1) < 1
    assert "20 of 39 tensors" in found.message
    assert found.message.endswith("the same merge command continues it")
    mergeloom.merge(config, out)
    assert mergeloom.status(out).condition == "finished"


def test_a_merge_that_runs_is_known_by_its_lock(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[str, int | None]] = []

    def progressed(progress: mergeloom.Progress) -> None:
        found = mergeloom.status(out)
        seen.append((found.condition, found.tensors))

    mergeloom.merge(config, out, observer=mergeloom.Observer(progressed=progressed))
    assert ("running", 39) in seen
    assert mergeloom.status(out).condition == "finished"
    release = lock_directory(out / ".mergeloom")
    try:
        state = mergeloom.plan(config, output=out).report.output_state
        assert state is not None
        assert (state.will, "being written by another process" in state.message) == ("refuse", True)
    finally:
        release()
    lock_directory(out / ".mergeloom")()  # who asked has left nothing held


def test_the_report_is_kept_with_the_output(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = mergeloom.merge(config, tmp_path / "out")
    shutil.rmtree(tmp_path / "a")  # neither inputs nor the configuration are needed any more
    config.unlink()
    assert mergeloom.read_report(tmp_path / "out") == result.report
    out, _ = said(capsys, "report", tmp_path / "out")
    assert "2 sources are merged with each other layer by layer" in out
    assert "peak memory" in out
    path = tmp_path / "out" / ".mergeloom" / "report.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OutputError, match="is damaged, or of another version"):
        mergeloom.read_report(tmp_path / "out")
    path.unlink()
    with pytest.raises(OutputError, match="is a finished merge whose report is missing"):
        mergeloom.read_report(tmp_path / "out")


def test_clean_removes_what_was_interrupted(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    mergeloom.merge(config, out)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # not the cache of this user
    with pytest.raises(OutputError, match="is a finished merge, which 'clean' does not remove"):
        mergeloom.clean(out)
    with pytest.raises(OutputError, match="is not an interrupted merge"):
        mergeloom.clean(tmp_path / "a")
    interrupt(out, 20)
    for name in ("README.md", "config.json", "mergeloom_config.yml"):
        (out / name).unlink()  # which are written when all shards are there
    (out / "mine.txt").write_text("kept")
    said_dry, _ = said(capsys, "clean", out, "--dry-run")
    assert "would be removed" in said_dry
    assert (out / "model.safetensors.partial").exists()
    found = mergeloom.clean(out)
    assert found.removed
    assert found.bytes > 4000
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_clean_keeps_the_machine_code_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mergeloom.methods.ops.arithmetic import LIBRARY

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loops = cache_directory() / "loops"
    for directory in (loops / "old", LIBRARY.directory):
        directory.mkdir(parents=True)
        (directory / "dots").write_bytes(b"x" * 5000)
    (found,) = mergeloom.clean().found
    assert found.path == str(loops / "old")
    assert LIBRARY.directory.exists()
    assert not (loops / "old").exists()
    assert len(mergeloom.clean(everything=True).found) == 1
    assert mergeloom.clean(everything=True).found == ()


# --- explain, progress ------------------------------------------------------------------------


def test_explain_says_what_each_line_sets(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    path = tmp_path / "merge.yml"
    path.write_text(
        "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters:\n  t:\n"
        "    - filter: self_attn\n      value: [0, 0.5, 1]\n"
        "    - filter: nowhere\n      value: 1\n"
        "    - value: 0.25\n"
    )
    found = mergeloom.explain_lines(path)
    uses = {use.line: use for use in found.uses}
    assert (uses[6].tensors, uses[6].layers, uses[6].least, uses[6].most) == (16, ((0, 4),), 0, 1)
    assert uses[8].tensors == 0
    assert uses[10].tensors == 39 - 16
    assert len(found.lines) == 10


def test_progress_is_json_line_by_line(config: Path, tmp_path: Path) -> None:
    found = run("merge", config, tmp_path / "out", "--json-progress")
    assert (found.returncode, found.stderr) == (0, "")
    *progress, last = map(json.loads, found.stdout.splitlines())
    assert {line["document"] for line in progress} == {"progress"}
    assert progress[-1]["share"] == 1
    assert progress[-1]["merges_done"] == progress[-1]["merges_total"]
    assert last["document"] == "merge"
    config.write_text("merge_method: linear\n")
    failed = run("merge", config, tmp_path / "other", "--json-progress")
    (error,) = map(json.loads, failed.stdout.splitlines())
    assert (failed.returncode, error["document"]) == (2, "error")


def test_a_merge_is_cancelled_from_another_thread_and_continues(
    config: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    observer = mergeloom.Observer(
        progressed=lambda progress: threading.Thread(target=stop.set).start(),
        cancelled=lambda: stop.wait(5),
    )
    with pytest.raises(
        mergeloom.RunError, match="was cancelled; what is finished is kept"
    ) as error:
        mergeloom.merge(config, tmp_path / "out", observer=observer)
    assert error.value.code == "cancelled"
    assert mergeloom.status(tmp_path / "out").condition == "interrupted"
    assert not mergeloom.merge(config, tmp_path / "out").outcome.was_finished
    assert mergeloom.verify(tmp_path / "out").sound


# --- mergekit's flags -------------------------------------------------------------------------


def test_flags_of_mergekit_become_options() -> None:
    flags = MergekitFlags(
        allow_crimes=True,
        unsafe_truncate_embeddings=True,
        random_seed=7,
        cuda=True,
        num_threads=3,
        out_shard_size="2B",
    )
    output_options, resources = translate_flags(flags, OutputOptions(), ResourceOptions())
    assert output_options == OutputOptions(
        seed=7,
        max_shard_size="2000000000",
        allow_truncated_embeddings=True,
        allow_different_architectures=True,
    )
    assert resources == ResourceOptions(threads=3, device="cuda")
    assert translate_flags(MergekitFlags(), OutputOptions(), ResourceOptions()) == (
        OutputOptions(),
        ResourceOptions(),
    )
    with pytest.raises(LoomError, match="--out-shard-size '0B' is not a size"):
        translate_flags(MergekitFlags(out_shard_size="0B"), OutputOptions(), ResourceOptions())


EVERY_FLAG = """--allow-crimes --no-allow-crimes --unsafe-truncate-embeddings
--no-unsafe-truncate-embeddings --trust-remote-code --no-trust-remote-code --transformers-cache X
--lora-merge-cache X --lora-merge-dtype float16 --random-seed 3 -v -vv --quiet --no-quiet --no-cuda
--device cpu --low-cpu-memory --no-low-cpu-memory --lazy-unpickle --no-lazy-unpickle --read-to-gpu
--no-read-to-gpu --no-multi-gpu -j 2 --num-threads 2 --async-write --no-async-write
--write-threads 2 --out-shard-size 1k --copy-tokenizer --no-copy-tokenizer --clone-tensors
--no-clone-tensors --write-model-card --no-write-model-card --safe-serialization
--no-safe-serialization"""
"""Every flag of ``mergekit-yaml`` 0.1.5 but those that need a GPU."""


def test_every_flag_of_mergekit_is_understood(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    _, err = said(capsys, "mergekit-yaml", config, tmp_path / "out", *EVERY_FLAG.split())
    assert os.environ["HF_HUB_CACHE"] == "X"
    for line in (
        "--random-seed: same as --seed 3",
        "--out-shard-size: same as --max-shard-size 1000",
        "--no-safe-serialization: no effect",
    ):
        assert line in err
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 6
    plain = mergeloom.merge(config, tmp_path / "plain", max_shard_size=1000)
    assert mergeloom.verify(tmp_path / "out").tensors == plain.report.output.tensors


def test_the_command_mergekit_yaml_replaces_another_merge(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    said(capsys, "mergekit-yaml", config, out)
    first = (out / "model.safetensors").read_bytes()
    config.write_text(LINEAR.replace("3", "4"))
    _, err = said(capsys, "mergekit-yaml", config, out)
    assert "holds another merge: it is made anew" in err
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("kept")
    assert (out / "model.safetensors").read_bytes() != first
    with pytest.raises(OutputError, match="was not made by mergeloom"):
        said(capsys, "mergekit-yaml", config, tmp_path / "elsewhere")


def test_merge_accepts_flags_of_mergekit_and_reports_their_effect(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(capsys, "plan", config, "--lazy-unpickle", "--out-shard-size", "1M")
    assert "--lazy-unpickle: no effect: nothing is ever unpickled\n" in err
    assert "--out-shard-size: same as --max-shard-size 1000000\n" in err
    assert "4 layers" in out
    help_text, _ = said(capsys, "help", "merge")
    assert "--lazy-unpickle" not in help_text


# --- transplant -------------------------------------------------------------------------------


def test_transplant_gives_a_model_the_tokenizer_of_another(tmp_path: Path) -> None:
    llamas(tmp_path, "ab", vocabulary=4)
    for name, words in (("a", ["x", "y", "z"]), ("b", ["x", "y", "z", "new"])):
        document = {"model": {"type": "BPE", "vocab": {each: n for n, each in enumerate(words)}}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document))
    out = tmp_path / "out"
    app(
        ["transplant", str(tmp_path / "a"), str(tmp_path / "b"), str(out), "-q"],
        "mergeloom",
        standalone_mode=False,
    )
    assert json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]["new"] == 3
    assert mergeloom.verify(out).sound


def test_flags_of_mergekit_tokensurgeon_without_effect_are_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "-bm yes --batch-size 8 --trust-remote-code --random-seed 3"
    with pytest.raises(LoomError, match="is neither a directory nor a hub id"):
        app(
            ["transplant", "../a", "../b", str(tmp_path / "out"), *flags.split()],
            "mergeloom",
            standalone_mode=False,
        )
    said = capsys.readouterr().err
    assert "--byte-match: no effect: tokens that stand for the same bytes always match" in said
    assert "--batch-size: no effect: --ram bounds the memory" in said
    assert "--trust-remote-code: no effect: no code of a model is run" in said
    assert "--random-seed: same as --seed 3" in said


def test_messages_of_transplant_name_no_place_in_a_configuration(tmp_path: Path) -> None:
    llamas(tmp_path, "a")
    with pytest.raises(LoomError, match="is neither a directory nor a hub id") as caught:
        app(
            ["transplant", "../none", str(tmp_path / "a"), str(tmp_path / "out")],
            "mergeloom",
            standalone_mode=False,
        )
    assert caught.value.place is None
