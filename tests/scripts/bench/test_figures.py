"""The figures of README.md and docs/performance.md: pages made of results, results of one day."""

import json
from typing import Any

import pytest

from scripts.bench import figures
from scripts.bench.figures_page import BEGIN, END, page, readme
from scripts.fixtures.environment import ROOT

DOCUMENT: dict[str, Any] = {
    "day": "2026-01-02",
    "version": "0.1.0",
    "machine": {"python": "3.11", "cores": 2, "processor": "X", "memory_bytes": 24 << 30},
    "shape": "1b",
    "large": "70b",
    "parts": {
        "merges": {
            "ram": "1GiB",
            "raw": "direct, 8 MiB, 4 in flight, into reserved blocks",
            "rows": [
                {
                    "merge": "linear",
                    "seconds": [4.0, 3.6],
                    "peak_bytes": 1 << 30,
                    "floor_seconds": [3.0],
                    "mergekit_durable_seconds": [18.0],
                    "mergekit_peak_bytes": 4 << 30,
                }
            ],
        },
        "start": {
            "merge": {"seconds": 0.8, "cpu_seconds": 0.7},
            "plan": {"seconds": 0.4, "cpu_seconds": 0.3},
        },
        "budgets": [
            {
                "merge": name,
                "limit_bytes": mib << 20,
                "smallest_bytes": 136 << 20,
                "seconds": [10.0],
                "read_bytes": 5 * 10**9,
                "peak_bytes": 129 << 20,
                "group_peak_bytes": 77 << 20,
            }
            for name, mib in (("linear", 160), ("slerp", 160), ("ties", 192))
        ],
        "many": [
            {
                "method": "linear",
                "what": what,
                "tensors": 60609,
                "seconds": 4.0,
                "cpu_seconds": 3.9,
                "peak_bytes": 300 << 20,
                "each_seconds": each,
            }
            for what, each in (("plan", None), ("explain", None), ("merge", 3e-4))
        ],
        "large": {
            "layers": 8,
            "of": 80,
            "peak_bytes": 250 << 20,
            "rows": [
                {
                    "merge": "linear",
                    "limit_bytes": 256 << 20,
                    "seconds": 100.0,
                    "read_bytes": 36 * 10**9,
                    "write_bytes": 18 * 10**9,
                    "peak_bytes": 206 << 20,
                }
            ],
            "stack": {
                "bytes": 210 * 10**9,
                "shards": 45,
                "seconds": 0.8,
                "cloned_bytes": 209 * 10**9,
                "copied_bytes": 188_000,
            },
        },
    },
}


def test_the_page_has_a_section_for_each_part_that_was_measured() -> None:
    text = page(DOCUMENT)
    assert "2026-01-02" in text
    assert "| linear of two | 3.6 s | 1.00 GiB | 18.0 s | 4.00 GiB | 5.0x | 3.0 s | 1.20x |" in text
    assert "| ties, three and a base | 192 MiB | 136 MiB | 10.0 s | 5.00 GB |" in text
    assert "| linear | merge | 60,609 | 4.0 s | 3.9 s | 0.30 ms | 300 MiB |" in text
    assert "expects a peak of 250 MiB" in text
    assert "210 GB in 45 shards" in text
    assert "{" not in text
    without = page({**DOCUMENT, "parts": {"start": DOCUMENT["parts"]["start"]}})
    assert [line for line in without.splitlines() if line.startswith("## ")] == [
        "## Start-up and planning",
        "## Where the time goes",
        "## Measure yourself",
    ]


def test_the_readme_keeps_all_but_its_figures() -> None:
    text = readme(f"before\n{BEGIN}\nold\n{END}\nafter\n", DOCUMENT)
    assert text.startswith(f"before\n{BEGIN}\nMeasured on 2026-01-02")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    said = " ".join(text.split())
    assert "160 MiB is enough for linear and slerp, one of 192 MiB is enough for ties." in said
    assert "takes 0.80 s, the plan of a 7B merge 0.40 s" in said
    assert readme(text, DOCUMENT) == text
    with pytest.raises(ValueError, match="does not have the lines"):
        readme("nothing", DOCUMENT)
    assert readme((ROOT / "README.md").read_text(), DOCUMENT).count(END) == 1


def test_parts_measured_again_join_those_of_the_same_day(tmp_path, monkeypatch, capsys) -> None:
    settings = figures.Settings(tmp_path, None, "small", 1, "small", 2, 2, 0)
    assert figures.begin(settings)["parts"] == {}
    parts = {"start": lambda _: DOCUMENT["parts"]["start"], "budgets": failing}
    monkeypatch.setattr(figures, "PARTS", parts)
    given = ["--work", str(tmp_path), "--pages", str(tmp_path / "pages"), "--rehearse"]
    assert figures.main(given) == 1
    assert "figures: budgets: no cgroup" in capsys.readouterr().err
    kept = figures.begin(settings)
    assert list(kept["parts"]) == ["start"]
    assert (tmp_path / "pages" / "docs" / "performance.md").read_text() == page(kept)
    kept["day"] = "2020-01-01"
    (tmp_path / "figures.json").write_text(json.dumps(kept))
    assert figures.begin(settings)["parts"] == {}
    assert figures.main([*given, "--parts", "nothing"]) == 2


def failing(settings: figures.Settings) -> None:
    raise OSError("no cgroup")
