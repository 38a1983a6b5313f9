"""The program where a system lacks what only POSIX, or only Linux, has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mergeloom
from tests.mergeloom.support import ROOT
from tests.planners.support import llama

POOR = """
import builtins, mmap, os, sys
import rich.console, psutil, filelock  # what others take is theirs
real = builtins.__import__
def poor(name, globals=None, locals=None, fromlist=(), level=0):
    asks = (globals or {}).get('__name__') or ''
    if name in ('fcntl', 'resource', 'pwd', 'grp', 'termios') and asks.startswith('mergeloom'):
        raise ImportError(f'no module named {name} here')
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = poor
for name in ('O_DIRECT', 'O_CLOEXEC', 'preadv', 'pwritev', 'pread', 'pwrite', 'posix_fadvise',
             'posix_fallocate', 'sched_getaffinity', 'fdatasync', 'RWF_NOWAIT'):
    if hasattr(os, name): delattr(os, name)
for name in ('MAP_PRIVATE', 'MAP_ANONYMOUS', 'MADV_HUGEPAGE', 'MADV_DONTNEED'):
    if hasattr(mmap, name): delattr(mmap, name)
from mergeloom.cli import main
main()
"""


def poor(*arguments: object, code: str = POOR) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    llama(tmp_path / "a")
    path = tmp_path / "merge.yml"
    path.write_text("merge_method: passthrough\nmodels: [a]\n")
    return path


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_the_same_bytes_without_fcntl_resource_and_direct_requests(
    config: Path, tmp_path: Path
) -> None:
    llama(tmp_path / "b", seed=1)
    config.write_text("merge_method: linear\nmodels: [a, b]\nparameters: {weight: 0.5}\n")
    mergeloom.merge(config, tmp_path / "rich")
    # torch, which merging takes, has needs of its own
    found = poor("merge", config, tmp_path / "poor", "--json", code=f"import torch\n{POOR}")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["measured"]["peak_rss_bytes"] > 0
    assert weights(tmp_path / "poor") == weights(tmp_path / "rich")
    assert mergeloom.verify(tmp_path / "poor").sound


def test_an_interrupted_merge_is_continued_without_them(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dies = POOR.replace(
        "from mergeloom.cli import main\n",
        "from mergeloom.cli import main\n"
        "from mergeloom.engine.output import sink\n"
        "sink.ShardSink.finish = lambda *a: os._exit(9)\n",
    )
    assert poor("merge", config, out, code=dies).returncode == 9
    finished = poor("merge", config, out)
    assert finished.returncode == 0, finished.stderr
    assert "are already finished" in finished.stderr
    assert mergeloom.verify(out).sound


def test_two_processes_do_not_write_one_output_without_them(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    holds = POOR.replace(
        "main()\n",
        "import pathlib\n"
        "from mergeloom.engine.output.lock import lock_directory\n"
        "own = pathlib.Path(sys.argv[2]) / '.mergeloom'; own.mkdir(parents=True)\n"
        "release = lock_directory(own); print('held', flush=True); sys.stdin.read()\n",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holds, "hold", str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refused = poor("merge", config, out)
    assert refused.returncode == 1
    assert "another process is writing" in refused.stderr
    process.kill()
    process.wait()
    assert poor("merge", config, out).returncode == 0  # a lock ends with its process
