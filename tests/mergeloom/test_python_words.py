"""What Python programs are told names arguments of the API, not options of the command line."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mergeloom
from mergeloom import LoomError, LoomWarning, Observer, check, python_words
from mergeloom.cli import COMMANDS
from mergeloom.engine.base.errors import Finding
from mergeloom.python_words import argument_words
from tests.mergeloom.support import LINEAR, ROOT
from tests.planners.support import llama


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("start over with --restart", "start over with restart=True"),
        ("--allow-different-architectures writes", "allow_different_architectures=True writes"),
        ("enough (--ram 152MiB)", "enough (ram='152MiB')"),
        ("set it: --seed N", "set it: seed=N"),
        ("--max-shard-size SIZE", "max_shard_size=SIZE"),
        ("with --device cpu without this", "with device='cpu' without this"),
        ("--device 'cud' is unknown", "device='cud' is unknown"),
        ("--ram bounds the memory", "ram bounds the memory"),
        ("or with a smaller --ram", "or with a smaller ram"),
        ("by --model-dir acme/a=PATH", "by model_dirs={'acme/a': PATH}"),
        ("write --set parameters.t=0.3, or", "write settings={'parameters.t': 0.3}, or"),
        ("--set 'models[0].model=a b'", "settings={'models[0].model': 'a b'}"),
        ("--stack and --method linear", "stack=True and method='linear'"),
        ("--prefix: 'x' is not one of the choices", "prefix: 'x' is not one of the choices"),
        ("export with --no-tokenizer", "export with tokenizer=False"),
        ("'mergeloom diff A B --values' compares", "'mergeloom diff A B --values' compares"),
        ("no option", "no option"),
    ],
)
def test_options_become_arguments(option: str, argument: str) -> None:
    assert argument_words(option) == argument


def options_of(function: str) -> set[str]:
    return set(inspect.signature(getattr(mergeloom, function)).parameters)


def test_every_argument_that_is_named_exists() -> None:
    names = {value.partition("=")[0] for value in python_words._FLAGS.values()}
    names |= {each.replace("-", "_") for each in python_words._WITH_VALUES}
    names |= set(python_words._MAPPINGS.values())
    functions = ("plan", "merge", "diff", "verify", "init", "export")
    functions += ("plan_transplant", "plan_extract")
    assert names <= set().union(*map(options_of, functions))


def refusal(call: Any) -> LoomError:
    with pytest.raises(LoomError) as caught:
        call()
    error = caught.value
    assert not re.search(r"(^|[\s(])--[a-z]", str(error)), "an option of the command line"
    assert str(error) == "\n".join(map(str, error.findings))
    return error


def test_errors_and_warnings_name_arguments(config: Path, tmp_path: Path) -> None:
    assert "(ram='" in refusal(lambda: mergeloom.plan(config, ram="9MiB")).remedy
    assert (
        "(ram='"
        in refusal(
            lambda: mergeloom.diff(tmp_path / "a", tmp_path / "b", values=True, ram="9MiB")
        ).remedy
    )
    mergeloom.merge(config, tmp_path / "out")
    config.write_text(LINEAR.replace("3", "4") + "random_seed: 1\n")
    told: list[Finding] = []
    again = refusal(
        lambda: mergeloom.merge(config, tmp_path / "out", observer=Observer(warned=told.append))
    )
    assert again.remedy == "start over with restart=True, or choose another output"
    assert told[0].remedy.endswith("seed=N")
    with pytest.warns(LoomWarning, match="seed=N"):
        planned = mergeloom.plan(config)
    assert [each.remedy for each in planned.warnings] == [told[0].remedy]
    assert "--seed" in planned.report.warnings[0].remedy, "as `mergeloom plan --json` has it"
    with pytest.warns(LoomWarning, match="seed=N"):
        run = mergeloom.start(config, tmp_path / "out")
    assert "restart=True" in refusal(run.result).remedy
    refusal(lambda: mergeloom.plan(config, settings=["x"]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.plan("c.yml", serach="x"), "no option 'serach': did you mean 'search'?"),
        (lambda m: m.merge("c.yml", "o", restrt=True), "'restrt': did you mean 'restart'?"),
        (lambda m: m.diff("a", "b", valeus=True), "'valeus': did you mean 'values'?"),
        (lambda m: m.explain("c.yml", tokn="x"), "'tokn': did you mean 'token'?"),
        (lambda m: m.merge("c.yml"), "merge(): missing a required argument: 'output'"),
        (lambda m: m.status("a", "b"), "status(): too many positional arguments"),
        (lambda m: m.plan("c.yml", observer=print), "observer must be an Observer"),
        (lambda m: m.init([]), "models is empty"),
    ],
)
def test_calls_that_no_function_takes_are_errors_with_a_remedy(call: Any, says: str) -> None:
    error = refusal(lambda: call(mergeloom))
    assert says in str(error)
    assert error.remedy


def test_public_functions_keep_their_names_and_arguments() -> None:
    assert mergeloom.plan is mergeloom.plan
    assert mergeloom.plan.__name__ == "plan"
    assert "ram" in options_of("plan")


GGUF_KEYS = {
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "intermediate_size": 8,
    "num_attention_heads": 2,
}
"""What a GGUF file says of a model and the small models here do not."""

WITHOUT = """
import sys, importlib.machinery as machinery
hidden, real = sys.argv[1], machinery.PathFinder
class Poorer(real):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] == hidden else real.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(real)] = Poorer
sys.argv = ['mergeloom', *sys.argv[2:]]
from mergeloom.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("package", "arguments", "says"),
    [
        ("click", ("plan", "merge.yml"), "pip install click"),
        ("rich", ("plan", "merge.yml"), "pip install rich"),
        ("yaml", ("plan", "merge.yml"), "pip install pyyaml"),
        ("networkx", ("plan", "merge.yml", "--graph", "g.dot"), "pip install networkx"),
        ("huggingface_hub", ("inspect", "acme/none"), "pip install huggingface_hub"),
        ("transformers", ("verify", "out", "--load"), "pip install transformers"),
        ("gguf", ("export", "a", "a.gguf", "--no-tokenizer"), "pip install 'mergeloom[gguf]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    config: Path, tmp_path: Path, package: str, arguments: tuple[str, ...], says: str
) -> None:
    model = json.loads((tmp_path / "a" / "config.json").read_text())
    described = {**model, **GGUF_KEYS}
    (tmp_path / "a" / "config.json").write_text(json.dumps(described))
    if "out" in arguments:
        mergeloom.merge(config, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
    )
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert done.returncode == 2
    assert package in line
    assert line.endswith(says)


def test_every_command_has_its_call_and_every_argument_is_documented() -> None:
    """Commands of another program, and those that act on this machine only, have none."""
    calls: dict[str, str | None] = {
        "prepare": None,
        "mergekit-yaml": None,
        "mergekit-pytorch": None,
    }
    calls |= {"methods": "list_methods", "report": "read_report"}
    for command in COMMANDS:
        name = calls.get(command, command)
        assert name is None or name in mergeloom.__all__, command
    text = (ROOT / "docs" / "python.md").read_text().replace("```", "")
    code = re.findall(r"`[^`]+`", text)
    known = set(re.findall(r"\w+", " ".join(code)))
    for name in mergeloom.__all__:
        found = getattr(mergeloom, name)
        if not inspect.isfunction(found):
            continue
        arguments = set(inspect.signature(found).parameters) - {"options"}
        assert {name, *arguments} <= known, name


def test_a_transplant_from_python(tmp_path: Path) -> None:
    for name, words in (("a", ["x", "y", "z"]), ("b", ["x", "y", "z", "new"])):
        document = {"model": {"type": "BPE", "vocab": {each: n for n, each in enumerate(words)}}}
        (llama(tmp_path / name, vocabulary=4) / "tokenizer.json").write_text(json.dumps(document))
    models = tmp_path / "a", tmp_path / "b"
    planned = mergeloom.plan_transplant(*models, method="mean")
    assert planned.report.vocabulary is not None
    assert planned.tasks().tasks
    assert planned.budgets().rows
    result = mergeloom.transplant(*models, tmp_path / "out", method="mean", ram="1GiB")
    assert result.planned.plan.fingerprint == planned.plan.fingerprint
    vocabulary = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary["new"] == 3
    for wrong, says in (
        ({"method": "ompp"}, "method: 'ompp' is not one of the choices: did you mean 'omp'?"),
        ({"k": 0}, "k: 'k' must be 1 or more"),
        ({"methd": "omp"}, "there is no option 'methd': did you mean 'method'?"),
    ):
        assert says in str(
            refusal(lambda wrong=wrong: mergeloom.transplant(*models, tmp_path / "o", **wrong))
        )


def test_a_check_that_fails_is_in_the_report(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(check, "_check_rows", lambda *_: (3, 10))
        error = refusal(lambda: mergeloom.merge(config, out, check=1))
        assert "is wrong in 3 of 10 elements" in error.cause
        assert "restart=True" in error.remedy
    for _ in range(2):  # right after the merge, and after a check of what it left
        report = mergeloom.read_report(out)
        assert report.checked is not None
        assert report.checked.wrong == error.cause
        with monkeypatch.context() as patched:
            patched.setattr(check, "_check_rows", lambda *_: (3, 10))
            error = refusal(lambda: mergeloom.merge(config, out, check=1))
    mergeloom.merge(config, out, check=1)
    report = mergeloom.read_report(out)
    assert report.checked is not None
    assert report.checked.wrong is None
