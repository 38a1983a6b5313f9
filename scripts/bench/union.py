"""Merge 70B-shaped checkpoints with different vocabularies in a small memory cgroup.

    scripts/run union --work DIR                       three of 152k tokens, in 512 MiB

The budget is the size of the cgroup. The checkpoints have one layer and large embeddings and heads.
They are headers and holes, so only the output occupies disk space: 7 GB, removed at the end. Needs
root.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.bench.compare import VARIABLES
from scripts.bench.measure import run
from scripts.fixtures.checkpoints import make
from scripts.fixtures.shapes import SHAPES

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_SHARED, _OWN = 148_000, 1_200
"""Tokens that all checkpoints have, each in an order of its own, and that one alone has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from mergeloom.engine.base.errors import LoomError
    from mergeloom.report.units import parse_size

    parser = argparse.ArgumentParser(
        prog="run union", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="directory for models and output"
    )
    parser.add_argument(
        "--models", type=int, default=3, metavar="N", help="number of models [default: 3]"
    )
    parser.add_argument(
        "--ram", default="512MiB", metavar="SIZE", help="budget and cgroup size [default: 512MiB]"
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="70b", help="shape of the models [default: 70b]"
    )
    options = parser.parse_args(arguments)
    work = options.work / "union"
    try:
        work.mkdir(parents=True)
        models = [_model(work / f"m{n}", options.shape, n) for n in range(options.models)]
        print(_merged(work, models, options.ram, parse_size(options.ram)))
    except (OSError, LoomError) as error:
        print(f"union: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _model(directory: Path, shape: str, number: int) -> Path:
    tokens = [f"w{i}" for i in range(_SHARED)] + [f"m{number}_{i}" for i in range(_OWN)]
    random.Random(number).shuffle(tokens)
    ids = {token: place for place, token in enumerate((*_SPECIAL, *tokens))}
    make(directory, replace(SHAPES[shape], vocab=len(ids), layers=1), sparse=True)
    for path in directory.glob("*token*"):
        path.unlink()
    added = [
        {"id": ids[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in _SPECIAL
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def _merged(work: Path, models: Sequence[Path], ram: str, limit: int) -> str:
    """Run the merge and describe its time, memory and bytes read."""
    config = work / "union.yml"
    document = {
        "merge_method": "linear",
        "models": [{"model": str(model), "parameters": {"weight": 1}} for model in models],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
        "dtype": "bfloat16",
    }
    config.write_text(json.dumps(document))
    command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(work / "out")]
    result = run([*command, "--ram", ram, "--quiet", "--json"], limit=limit, variables=VARIABLES)
    if result.status:
        raise OSError((result.complaints.strip().splitlines() or [f"status {result.status}"])[-1])
    report, group = json.loads(result.output), result.group
    assert group is not None
    return (
        f"{report['vocabulary']['rows']:,} rows of {len(models)} models in {ram}: "
        f"{result.seconds:.1f} s, {result.peak_bytes / 2**20:.0f} MiB resident, "
        f"{group.killed} killed, {report['io']['read_bytes'] / 1e9:.1f} GB read"
    )
