"""The program as its user meets it: commands, exit codes, what goes where."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mergeloom
from mergeloom import cli
from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.hardware.profile import cache_directory
from mergeloom.engine.output.journal import FinishedTensor, Journal
from mergeloom.report.units import memory_text, parse_size
from scripts.fixtures.checkpoints import make
from tests.mergeloom.support import LINEAR, ROOT, merge_without_torch, run


def test_plan_says_what_will_happen(config: Path) -> None:
    found = run("plan", config)
    assert found.returncode == 0, found.stderr
    assert "4 layers" in found.stdout
    assert "2 sources are merged with each other layer by layer" in found.stdout
    document = json.loads(run("plan", config, "--json", "--ram", "1GiB").stdout)
    assert document["output"]["layers"] == 4
    assert document["tasks"]["write"] == document["output"]["tensors"] == 4 * 9 + 3
    assert document["memory"]["budget_bytes"] == 1 << 30
    assert document["memory"]["minimum_bytes"] <= document["memory"]["peak_bytes"] <= 1 << 30
    assert document["io"]["read_bytes"] == 2 * document["output"]["parameters"] * 4
    assert document["unused_inputs"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("merge",), "missing argument 'CONFIG'"),
        (("merge", "a", "b", "--foo"), "there is no option '--foo': it is called as 'mergeloom"),
        (("plan", "a", "--threads", 0), "invalid value for '--threads'"),
        (("frob",), "there is no command 'frob'"),
    ],
)
def test_an_invalid_command_line_is_one_line_that_names_the_help(
    arguments: tuple[object, ...], says: str
) -> None:
    found = run(*arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {says}")
    assert found.stderr.endswith("--help' shows how it is used\n")
    assert found.stderr.count("\n") == 1


def test_without_a_command_there_is_help() -> None:
    found = run()
    assert found.returncode == 2
    assert "Commands:" in found.stdout


def test_planning_never_imports_torch(config: Path) -> None:
    code = (
        "import sys; from mergeloom.cli import main\n"
        f"sys.argv = ['mergeloom', 'plan', {str(config)!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_a_passthrough_never_imports_torch(config: Path, tmp_path: Path) -> None:
    config.write_text("merge_method: passthrough\nmodels: [a]\n")
    merge_without_torch(config, tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "ties", "della", "arcee_fusion", "karcher"])
def test_a_merge_on_the_cpu_never_imports_torch(config: Path, tmp_path: Path, method: str) -> None:
    based = "" if method in ("linear", "karcher") else "\nbase_model: a"
    config.write_text(LINEAR.replace("linear", method + based))
    merge_without_torch(config, tmp_path / "out")


def test_another_arithmetic_does_not_continue(config: Path, tmp_path: Path) -> None:
    config.write_text(LINEAR)
    assert run("merge", config, tmp_path / "out").returncode == 0
    found = run("merge", config, tmp_path / "out", MERGELOOM_ARITHMETIC="torch")
    assert found.returncode == 2
    assert "holds another merge: arithmetic" in found.stderr


def test_the_memory_of_torch_is_measured_and_remembered(config: Path, tmp_path: Path) -> None:
    config.write_text(LINEAR)
    own = tmp_path / "cache" / "mergeloom"
    own.mkdir(parents=True)
    (own / "loops").symlink_to(cache_directory() / "loops", target_is_directory=True)
    variables = {"XDG_CACHE_HOME": str(own.parent), "MERGELOOM_ARITHMETIC": "torch"}
    assert run("merge", config, tmp_path / "out", **variables).returncode == 0
    ((version, learnt),) = json.loads((own / "profile.json").read_text())["runtime_bytes"].items()
    assert version == metadata.version("torch")
    assert 200 << 20 < learnt < 2 << 30


def test_merge_verify_and_merge_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run("merge", config, out, "--json", "--quiet")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["measured"]["read_bytes"] == document["io"]["read_bytes"]
    assert document["measured"]["write_bytes"] == document["io"]["write_bytes"]
    assert document["measured"]["peak_rss_bytes"] <= document["memory"]["peak_bytes"]
    assert document["wall_seconds"] > 0
    manifest = json.loads((out / ".mergeloom" / "manifest.json").read_text())
    assert manifest["fingerprint"] == document["fingerprint"]
    assert manifest["about"]["configuration"] == LINEAR
    assert manifest["about"]["measured"]["read_bytes"] == document["io"]["read_bytes"]
    assert manifest["about"]["predicted"]["read_bytes"] == document["io"]["read_bytes"]
    sound = run("verify", out)
    assert (sound.returncode, "is sound" in sound.stdout) == (0, True)
    again = run("merge", config, out)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    assert again.stdout == ""
    assert run("merge", config, out, "--seed", 1).returncode == 0  # linear draws nothing
    config.write_text(LINEAR.replace("3", "4"))
    other = run("merge", config, out)
    assert other.returncode == 2
    assert "holds another merge: configuration" in other.stderr
    assert "Traceback" not in other.stderr


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_verify_finds_flipped_bits_missing_and_foreign_files(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    assert run("merge", config, out, "-q", "--max-shard-size", "2kB").returncode == 0
    first, second, third, *_ = sorted(out.glob("*.safetensors"))
    flip(first, -3)
    flip(second, 20)
    third.unlink()
    flip(out / "tokenizer.json", 0)
    (out / "config.json").unlink()
    shutil.copy(second, out / "model-00099-of-00099.safetensors")
    found = run("verify", out, "--json")
    assert found.returncode == 1
    wrong = {item["what"]: item["why"] for item in json.loads(found.stdout)["wrong"]}
    assert len(wrong) == 6
    assert wrong["config.json"] == "the file is missing"
    assert wrong["tokenizer.json"] == "its bytes differ from its digest"
    assert wrong[second.name] == "its header differs from its digest"
    assert wrong[third.name] == "the shard is missing"
    assert "another run" in wrong["model-00099-of-00099.safetensors"]
    assert list(wrong.values()).count("its bytes differ from its digest") == 2


def test_verify_finds_shards_of_another_run(config: Path, tmp_path: Path) -> None:
    for name, weight in (("one", "3"), ("two", "4")):
        config.write_text(LINEAR.replace("3", weight))
        assert run("merge", config, tmp_path / name, "-q").returncode == 0
    shutil.copy(tmp_path / "two" / "model.safetensors", tmp_path / "one" / "model.safetensors")
    found = run("verify", tmp_path / "one", "--json")
    assert found.returncode == 1
    assert len(json.loads(found.stdout)["wrong"]) == 4 * 9 + 3


def test_an_interrupted_merge_can_be_verified(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("merge", config, out, "-q").returncode == 0
    # As a kill leaves it that came between the last record and the renaming of the shard.
    manifest = json.loads((out / ".mergeloom" / "manifest.json").read_text())
    (out / ".mergeloom" / "manifest.json").unlink()
    (out / "model.safetensors").rename(out / "model.safetensors.partial")
    journal = Journal(out / ".mergeloom" / "journal")
    journal.begin(manifest["fingerprint"], manifest["identity"], ["model.safetensors"])
    keys = ("file", "name", "digest", "block_bytes")
    journal.append(FinishedTensor(*(record[key] for key in keys)) for record in manifest["tensors"])
    journal.close()
    found = run("verify", out)
    assert (found.returncode, "is not finished; what it has is sound" in found.stdout) == (0, True)
    flip(out / "model.safetensors.partial", -3)
    found = run("verify", out, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["wrong"] == [
        {"what": "lm_head.weight", "why": "its bytes differ from its digest"}
    ]
    lines = (out / ".mergeloom" / "journal").read_bytes().splitlines(keepends=True)
    lines[5] = b"x" + lines[5][1:]
    (out / ".mergeloom" / "journal").write_bytes(b"".join(lines))
    again = run("merge", config, out)
    assert again.returncode == 0
    lost = "1 damaged record in the journal and 1 tensor that differ from their digests"
    assert f"warning: {lost}: merged again" in again.stderr
    assert run("verify", out).returncode == 0


def test_check_finds_a_wrong_tensor_of_a_finished_merge(config: Path, tmp_path: Path) -> None:
    assert run("merge", config, tmp_path / "out", "-q").returncode == 0
    found = run("merge", config, tmp_path / "out", "--check", 5)
    assert found.returncode == 0
    assert "checked: 5 tensors" in found.stderr
    flip(tmp_path / "out" / "model.safetensors", -1)
    found = run("merge", config, tmp_path / "out", "--check", 100)
    assert found.returncode == 1
    assert "'lm_head.weight' in 'model.safetensors' is wrong" in found.stderr


def test_explain_tells_which_entry_set_a_parameter(config: Path) -> None:
    config.write_text(
        "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters:\n  t:\n"
        "    - filter: mlp\n      value: [0, 1]\n    - value: 0.25\n"
    )
    text = run("explain", config, "model.layers.3.mlp.up_proj.weight").stdout
    assert "t = 1  (global, merge.yml:6, filter 'mlp', gradient [0, 1] at 1)" in text
    found = json.loads(run("explain", config, "model.norm.weight", "--json").stdout)
    (tensor,) = found["tensors"]
    assert tensor["parameters"]["t"]["value"] == 0.25
    assert [item["model"] for item in tensor["inputs"]] == ["a", "b"]
    table = run("explain", config, "layers.2.mlp").stdout
    assert table.count("0.6667 [mlp]") == 3
    wrong = run("explain", config, "model.layers.3.mlp.up_prj.weight")
    assert wrong.returncode == 2
    assert "did you mean 'model.layers.3.mlp.up_proj.weight'?" in wrong.stderr


def test_inspect_and_methods_describe_models_and_methods(config: Path) -> None:
    text = run("inspect", config.parent / "a").stdout
    assert "4 layers, 'model.layers.N'" in text
    assert "model.layers.N.mlp.up_proj.weight" in text
    document = json.loads(run("inspect", config.parent / "a", "--json").stdout)
    assert len(document["tensors"]) == 39
    assert "ties" in run("methods").stdout
    told = run("methods", "ties").stdout
    for expected in (
        "Keeps only the largest changes",
        "s = sign(Σ wᵢτ̂ᵢ)",
        "density  1.0       [0, inf)",
        "1 or more, beside a base model",
        "element by element, two passes of statistics",
        "arXiv:2306.01708",
    ):
        assert expected in told
    document = json.loads(run("methods", "ties", "--json").stdout)
    assert document["methods"][0]["works"].startswith("element by element")
    wrong = run("methods", "tise")
    assert (wrong.returncode, "did you mean 'ties'?" in wrong.stderr) == (2, True)


WRONG: dict[str, tuple[list[Any], str]] = {
    "absent config": (["plan", "nowhere.yml"], "cannot read the configuration 'nowhere.yml'"),
    "size": (["plan", "CONFIG", "--ram", "lots"], "'lots' is not a size"),
    "small budget": (["plan", "CONFIG", "--ram", "1MiB"], "are enough"),
    "model dir": (["plan", "CONFIG", "--model-dir", "a"], "write ID=PATH"),
    "into an input": (["merge", "CONFIG", "INPUT"], "is the input 'a'"),
    "device": (["merge", "CONFIG", "OUT", "--device", "tpu"], "--device 'tpu'"),
    "io": (["merge", "CONFIG", "OUT", "--io", "magic"], "--io 'magic'"),
    "nothing to verify": (["verify", "OUT"], "does not exist"),
    "foreign": (["verify", "INPUT"], "was not made by mergeloom"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line_and_exit_with_2(config: Path, tmp_path: Path, case: str) -> None:
    arguments, expected = WRONG[case]
    names = {"CONFIG": config, "INPUT": tmp_path / "a", "OUT": tmp_path / "out"}
    found = run(*[names.get(argument, argument) for argument in arguments])
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert expected in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_a_budget_that_is_named_works(config: Path, tmp_path: Path) -> None:
    refused = run("merge", config, tmp_path / "out", "--ram", "1MiB")
    smallest = refused.stderr.split("(--ram ")[1].split(")")[0]
    found = run("merge", config, tmp_path / "out", "--ram", smallest, "--json", "-q")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["measured"]["peak_rss_bytes"] <= parse_size(smallest)


def test_model_dirs_and_search_folders_serve_hub_ids(config: Path, tmp_path: Path) -> None:
    config.write_text(LINEAR.replace("model: a", "model: acme/a").replace("model: b", "model: x/b"))
    (tmp_path / "hub" / "acme").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "hub" / "acme" / "a")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert run("plan", config).returncode == 2
    given = ["--model-dir", f"x/b={tmp_path / 'elsewhere'}", "--search-dir", tmp_path / "hub"]
    assert run("plan", config, *given).returncode == 0
    found = run("plan", config, *given[:2], MERGELOOM_MODELS=str(tmp_path / "hub"))
    assert found.returncode == 0


HEEDING = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from mergeloom.cli import main; main()"
)
"""The program, where tests run in the background of a shell that has interrupts ignored."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_within_a_second_and_can_be_resumed(
    tmp_path: Path, number: signal.Signals
) -> None:
    for name in "ab":
        make(tmp_path / name, "demo", layers=8, sparse=True)
    config = tmp_path / "merge.yml"
    config.write_text("merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: 0.5}\n")
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", HEEDING, "merge", config, out, "--threads", "1"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    journal = out / ".mergeloom" / "journal"
    while process.poll() is None and not (out / "model.safetensors.partial").exists():
        time.sleep(0.01)
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - sent < 3  # a second, and some more on a busy machine
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    assert journal.exists()
    assert not (out / "model.safetensors").exists()
    finished = run("merge", config, out)
    assert finished.returncode == 0, finished.stderr
    assert run("verify", out).returncode == 0


def test_an_interrupt_while_modules_are_imported_is_one_line(config: Path) -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'mergeloom.api': raise KeyboardInterrupt\n"
        "from mergeloom.cli import main\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        f"sys.argv = ['mergeloom', 'plan', {str(config)!r}]\n"
        "main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_before_a_command_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parse_args(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", ["mergeloom", "methods"])
    assert cli.run() == 130
    assert tuple(capsys.readouterr()) == ("", "interrupted\n")


@given(st.integers(1, 1 << 45))
def test_sizes_round_trip(nbytes: int) -> None:
    assert parse_size(str(nbytes)) == nbytes
    assert parse_size(memory_text(nbytes).replace(" ", "").replace("bytes", "")) == pytest.approx(
        nbytes, rel=0.05
    )


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GiB", 8 << 30), ("8G", 8 * 10**9), ("8GB", 8 * 10**9), ("500M", 5 * 10**8), ("1.5k", 1500)],
)
def test_sizes_are_read_in_all_units(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1QB", "1 2"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(LoomError, match="is not a size"):
        parse_size(text)


def test_version_prints_name_and_version() -> None:
    found = run("--version")
    assert (found.returncode, found.stdout.split()[0]) == (0, "mergeloom")


def test_an_output_that_is_an_input_is_refused_by_plan_and_api(
    config: Path, tmp_path: Path
) -> None:
    found = run("plan", config, tmp_path / "a")
    assert found.returncode == 2
    assert "is the input" in found.stderr
    before = sorted(path.name for path in (tmp_path / "a").iterdir())
    with pytest.raises(LoomError, match="is the input"):
        mergeloom.merge(config, tmp_path / "a", restart=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == before


def test_a_directory_for_a_model_that_is_not_named_is_refused(config: Path, tmp_path: Path) -> None:
    found = run("plan", config, "--model-dir", f"aa={tmp_path / 'a'}")
    assert found.returncode == 2
    assert "did you mean 'a'" in found.stderr


def test_explain_without_a_match_lists_some_tensors(config: Path) -> None:
    found = run("explain", config, "zzz")
    assert found.returncode == 2
    assert "there are 39 tensors, such as model.embed_tokens.weight, " in found.stderr
