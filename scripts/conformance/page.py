"""Renders the comparisons as tables, and as the page docs/conformance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from scripts.conformance.judge import Ulps, Verdict

if TYPE_CHECKING:
    from scripts.conformance.draws import Draw


_PAGE = """# Conformance with mergekit

These are the tables of `scripts/run conformance ENVIRONMENT --markdown docs/conformance.md`,
measured on {day}. The program merges small checkpoints with mergeloom and with mergekit 0.1.5 (in
ENVIRONMENT), both on the CPU, and compares the results: {merges} merges by each program, of
checkpoints in float32, bfloat16 and float16, tied and untied, fine-tunes of one base and unrelated
models. This run {verdict}.

A run fails if a tensor differs for a reason other than those that
[methods.md](methods.md#where-results-differ-from-mergekit) describes.
"""

_SECTIONS = {
    "results": """## Results

With `dtype: float32`. *Apart* is the largest distance between the programs, in float32 roundings
(2⁻²³ of the sum of magnitudes). Elements more than 4 roundings apart must be explained, so *apart*
never exceeds 4 in a run that passes. (This limit, and the tolerances for angles and scores, were
set after a first look at the differences, not before.) *By angles* is the largest distance that
float32 angles explain. *From float64* is the largest distance of mergeloom from the formula in
float64.
*Decided otherwise* counts elements, or cases, by their explanation.
""",
    "accuracy": """## Accuracy

With `dtype: bfloat16`: distances from the float64 reference in units in the last place, mean and
maximum. Rounding the exact result gives at most 0.5; copying an element gives 0. Equal magnitudes
and balanced votes are excluded; for results below 2⁻⁸ of the sum of magnitudes, the unit is that
of the sum. Decisions that differ because mergekit computes in bfloat16 count as its error.
""",
    "draws": """## Random choices

With densities 0.3 and 0.7 (and epsilon 0.2): the share that each program keeps, and its distance
from the expectation in standard deviations (sd). Unchanged elements, which are not visible in the
output, rank lowest.
""",
}


def page(tables: Mapping[str, str], merges: int, sound: bool, day: date) -> str:
    """The page with the tables of the comparisons ``results``, ``accuracy`` and ``draws``."""
    verdict = "passed" if sound else "did not pass"
    parts = [_PAGE.format(day=day.isoformat(), merges=merges, verdict=verdict)]
    parts += [f"{_SECTIONS[name]}\n{table}\n" for name, table in tables.items()]
    return "\n".join(parts)


def results_table(verdicts: Sequence[Verdict]) -> str:
    """Per method: cases, elements, largest distances in units, explained differences."""
    lines = [
        "| method | cases | elements | apart | by angles | from float64 | decided otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(verdict.case.method for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.case.method == method]
        found = [each for verdict in own for each in verdict.tensors.values()]
        counts: dict[str, int] = {}
        for verdict in own:
            for name, count in verdict.explained.items():
                if name != "float32 angles":
                    counts[name] = counts.get(name, 0) + count
            if verdict.reason is not None:
                counts[f"{verdict.reason} (cases)"] = counts.get(f"{verdict.reason} (cases)", 0) + 1
        angles = [each.apart for each in found if "float32 angles" in each.explained]
        explanations = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
        lines.append(
            f"| `{method}` | {len(own)} | {sum(each.elements for each in found):,} "
            f"| {max((each.units for each in found), default=0.0):.2f} "
            f"| {f'{max(angles):,.0f}' if angles else '-'} "
            f"| {max((each.error for each in found), default=0.0):.2f} | {explanations} |"
        )
    return "\n".join(lines)


def accuracy_table(pairs: Mapping[str, tuple[Ulps, Ulps]]) -> str:
    """Per method: mean and largest error of each program."""
    lines = [
        "| method | elements | mergeloom, mean / max | mergekit, mean / max |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{method}` | {ours.count:,} | {ours} | {theirs} |"
        for method, (ours, theirs) in pairs.items()
    ]
    return "\n".join(lines)


def draws_table(drawn: Sequence[Draw]) -> str:
    """Expected and observed statistics of random choices; deviations in standard deviations."""
    lines = ["| method | what | expected | mergeloom | mergekit |", "|---|---|---|---|---|"]
    lines += [
        f"| `{draw.method}` | {draw.what} | {draw.expected:.4g} "
        f"| {draw.ours:.4g} ({draw.our_deviation:+.1f} sd) "
        f"| {draw.theirs:.4g} ({draw.their_deviation:+.1f} sd) |"
        for draw in drawn
    ]
    return "\n".join(lines)
