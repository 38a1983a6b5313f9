"""A stack where extents are shared: nothing is copied but edges, and nothing stays."""

import os
import shutil

import pytest

from scripts.bench import stack


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_small_stack_is_cloned_and_everything_removed(kind, tmp_path, capsys):
    if os.geteuid() != 0 or shutil.which(f"mkfs.{kind}") is None:
        pytest.skip("needs root, loop devices and programs")
    assert stack.main(["--work", str(tmp_path / "work"), "--kind", kind, "--shape", "1b"]) == 0
    shown = capsys.readouterr().out
    assert "3.4 GB in 1 shards: 3.4" in shown, shown
    assert list((tmp_path / "work").iterdir()) == []
