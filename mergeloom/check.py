"""``--check``: recomputes a random sample of the output's tensors independently.

The safetensors library reads inputs and output, and `methods.reference` computes whole tensors in
float64, directly from the formulas. Only the plan is shared with the merge: which tensors are
merged, by which method, with which parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.graph.graph import Write
from mergeloom.engine.hardware import process
from mergeloom.planners.plan import Plan
from mergeloom.planners.tensors import TensorPlan, tensor_merge

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Checked:
    """The numbers of recomputed ``tensors`` and ``elements`` that were correct.

    ``passed_over`` counts chosen tensors that could not be recomputed, by reason. ``wrong`` says
    which tensor was not correct, after which the check ended.
    """

    tensors: int = 0
    elements: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    wrong: str | None = None

    def raise_if_wrong(self) -> None:
        """Raise if a tensor was not correct.

        Raises:
            RunError: one was not.
        """
        if self.wrong is not None:
            raise RunError(
                self.wrong,
                remedy="do not use this output; merge again with --restart, and report it if that "
                "continues",
                code="wrong",
            )


def check_output(
    plan: Plan, output: Path, number: int, budget: int, rng: random.Random | None = None
) -> Checked:
    """Recompute ``number`` randomly chosen tensors of a finished output, within ``budget`` bytes of
    memory.

    Of a tensor that is too large, a random range of rows is checked if the method works element by
    element.

    Raises:
        RunError: a file cannot be read.
    """
    rng = rng or random.Random()
    writes = {write.name: write for write in plan.graph.writes}
    drawn = [*plan.tensor_plans()]
    rng.shuffle(drawn)
    checked = Checked()
    for tensor in drawn:
        if checked.tensors == number:
            break
        reason = _reason_to_skip(tensor)
        write = writes.get(tensor.name)
        if write is None or write.file_shape is not None:
            reason = "quantised in the output"
        if reason is None:
            rows = _rows(tensor, writes[tensor.name], budget, rng)
            if rows is None:
                reason = "too large for the memory budget"
        if reason is not None:
            checked.passed_over[reason] = checked.passed_over.get(reason, 0) + 1
            continue
        wrong, elements = _check_rows(tensor, writes[tensor.name], plan, output, rows)
        if wrong:
            write = writes[tensor.name]
            checked.wrong = (
                f"'{write.name}' in '{write.file.name}' is wrong in {wrong} of {elements} elements "
                "that were computed again"
            )
            break
        checked.elements += elements
        checked.tensors += 1
    return checked


def _reason_to_skip(tensor: TensorPlan) -> str | None:
    from mergeloom.methods import reference

    if any(item.model.stored(item.tensor) is None for item in tensor.contributions):
        return "computed from an earlier stage, an adapter or quantised weights"
    if any(not path.endswith(".safetensors") for path, _ in _input_locations(tensor)):
        return "read from another format than safetensors"
    if tensor.method is not None and not reference.has_reference(tensor.method):
        return "by a method without a reference formula"
    return None


def _rows(
    tensor: TensorPlan, write: Write, budget: int, rng: random.Random
) -> tuple[int, int] | None:
    """The rows to compute, ``[start, stop)``: all, or a random range that fits; ``None`` if no row
    fits."""
    from mergeloom.methods import reference

    shape = write.shape
    count = shape[0] if shape else 1
    tensors = reference.TENSORS_PER_INPUT * len(tensor.contributions) + reference.TENSORS
    row_bytes = 8 * tensors * math.prod(shape[1:])
    fitting = (budget - process.resident_bytes()) // max(row_bytes, 1)
    if count <= fitting:
        return 0, count
    if fitting < 1 or (
        tensor.method is not None and tensor.method.name not in reference.ELEMENTWISE
    ):
        return None
    start = rng.randrange(count - fitting + 1)
    return start, start + fitting


def _check_rows(
    tensor: TensorPlan, write: Write, plan: Plan, output: Path, rows: tuple[int, int] | None
) -> tuple[int, int]:
    """Compare rows of a tensor with their recomputed values; returns the numbers of wrong elements
    and of all.

    Raises:
        RunError: a file cannot be read.
    """
    import torch

    from mergeloom.methods import reference

    assert rows is not None
    with torch.inference_mode():
        found = _read(output / write.file.name, write.name, rows)
        inputs = [_read(path, name, rows) for path, name in _input_locations(tensor)]
        if not found.numel():
            return 0, 0
        if not found.dtype.is_floating_point:
            wrong = found != inputs[0]
        else:
            merge = tensor_merge(tensor, tuple(found.shape), plan.options.seed)
            method = "passthrough" if tensor.method is None else tensor.method.name
            expected = reference.evaluate(method, merge, inputs)
            assert expected is not None
            wrong = reference.mismatches(found, expected)
        return int(wrong.sum()), found.numel()


def _input_locations(tensor: TensorPlan) -> Iterator[tuple[str, str]]:
    """The file and the stored name of each input of a tensor."""
    for item in tensor.contributions:
        stored = item.model.stored(item.tensor)
        assert stored is not None
        for part in stored.entry.bytes.ranges():
            yield part.source.name, stored.name


def _read(path: str | Path, name: str, rows: tuple[int, int]) -> Tensor:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            part = file.get_slice(name)
            scalar = not part.get_shape()
            found: Tensor = file.get_tensor(name) if scalar else part[rows[0] : rows[1]]
            return found
    except Exception as error:  # the library raises its own types and others
        raise RunError(f"'{name}' cannot be read from '{path}': {error}") from error
