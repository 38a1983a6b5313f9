"""Checks whether two sets of tensors name the parts of a layer in the same way.

    one model                          another
    mlp.experts.0.w1.weight            mlp.experts.gate_up_proj
    attention.LayerNorm.gamma          attention.LayerNorm.weight
    mlp.gate_proj.weight               block_sparse_moe.gate.weight

Each of these pairs is one weight under two names, or two different weights; merged by name, they
would not be matched, and the output would contain both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBERS = re.compile(r"\.\d+(?=\.|$)")


def naming_clash(one: Iterable[str], other: Iterable[str]) -> tuple[str, str] | None:
    """A kind of tensor that only ``one`` has and a kind that only ``other`` has, if both exist.

    Names that differ only in numbers (experts) are one kind. If only one set has additional
    tensors (biases, norms, an adapter's weights), there is no clash.
    """
    first, second = set(one), set(other)
    if first == second:
        return None
    mine = {_NUMBERS.sub(".N", name): name for name in sorted(first, reverse=True)}
    theirs = {_NUMBERS.sub(".N", name): name for name in sorted(second, reverse=True)}
    more, less = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    if more and less:
        return mine[min(more)], theirs[min(less)]
    return None
