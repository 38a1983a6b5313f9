"""The details in the form that the page reads: values shared by many tensors are written once.

templates  names with a zero character in place of each number
kinds      shape, dtype, layer, how, because, values
inputs     inputs of a tensor
tensors    a line each: position of its template, kind and inputs, then its numbers
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.json import to_json_types

_DIGITS = re.compile(r"\d+")


def compact(details: DetailsReport) -> dict[str, Any]:
    """The document of ``details``, with its tensors as tables and lines; see the module."""
    templates: dict[str, int] = {}
    kinds: dict[Any, int] = {}
    inputs: dict[Any, int] = {}
    lines = []
    for row in details.tensors:
        name = row.name  # printable: it contains no zero character
        kind = row.shape, row.dtype, row.layer, row.how, row.because, row.values
        places = [
            templates.setdefault(_DIGITS.sub("\0", name), len(templates)),
            kinds.setdefault(kind, len(kinds)),
            inputs.setdefault(row.inputs, len(inputs)),
        ]
        lines.append(" ".join([*map(str, places), *_DIGITS.findall(name)]))
    document = to_json_types(replace(details, tensors=()))
    fields = ("model", "layer", "tensor", "base", "values")
    return {
        **document,
        "templates": list(templates),
        "kinds": list(kinds),
        "inputs": [[[getattr(each, key) for key in fields] for each in one] for one in inputs],
        "tensors": "\n".join(lines),
    }
