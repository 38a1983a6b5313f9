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
from mergeloom import LoomError, LoomWarning, Observer, python_words
from mergeloom.engine.base.errors import Finding
from mergeloom.python_words import argument_words
from tests.mergeloom.support import LINEAR, ROOT


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
from mergeloom.cli import main
main()
"""


@pytest.mark.parametrize(
    ("package", "arguments", "says"),
    [
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
