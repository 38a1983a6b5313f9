"""Rows of tables that stand for others: sparse codes, neighbours, combinations.

A *table* lies at an address, rows of ``width`` elements of a `Kind`. What is looked for among the
rows of a table, its *atoms*, are *targets*, a few hundred at a time; atoms are looked at `ATOMS` at
a time, and each product of a target and an atom is added up in one fixed order.
"""

from __future__ import annotations

import math

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    bytes_,
    compiled,
    doubles,
    fill,
    floats,
    fused,
    ints,
)
from mergeloom.methods.ops.loops.convert import widened
from mergeloom.methods.ops.loops.sizes import ATOMS, BLOCK

_DEPENDENT = 1e-9
"""Share of its squared length that is left of an atom which is as good as made of others."""
_NOTHING = 1e-12
"""Share of its squared length that is left of a target which is as good as made: float32 has no
more to say."""


@compiled
def _row(address: Address, kind: int, number: int, out: Array, work: Address) -> None:
    """Write row ``number`` of a table as float32."""
    width = out.size
    for start in range(0, width, BLOCK):
        block = out[start : min(start + BLOCK, width)]
        widened(address, kind, number * width + start, block, work)


@compiled
def _dot(one: Array, other: Array) -> float:
    total = 0.0
    for i in range(one.size):
        total += np.float64(one[i]) * np.float64(other[i])
    return total


@compiled
def _scores(
    targets: Address,
    count: int,
    atoms: Address,
    kind: int,
    first: int,
    number: int,
    width: int,
    out: Address,
    panel: Address,
    work: Address,
) -> None:
    """Write the products of float32 targets with ``number`` atoms from ``first`` on: `ATOMS` for
    each target, of which the last may mean nothing."""
    fill(floats(out, count * ATOMS), np.float32(0.0))
    side = floats(panel, ATOMS * ATOMS)
    fill(side, np.float32(0.0))
    block = floats(panel + 4 * ATOMS * ATOMS, ATOMS)
    for column in range(0, width, ATOMS):
        length = min(ATOMS, width - column)
        for atom in range(number):
            widened(atoms, kind, (first + atom) * width + column, block[:length], work)
            for i in range(length):
                side[i * ATOMS + atom] = block[i]
        for target in range(0, count, 2):
            pair = 1 if target + 1 < count else 0
            x = floats(targets + 4 * (target * width + column), length)
            y = floats(targets + 4 * ((target + pair) * width + column), length)
            total = floats(out + 4 * ATOMS * target, ATOMS)
            other = floats(out + 4 * ATOMS * (target + pair), ATOMS)
            whole = length // 4 * 4
            for i in range(0, whole, 4):
                x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
                y0, y1, y2, y3 = y[i], y[i + 1], y[i + 2], y[i + 3]
                at = panel + 4 * ATOMS * i
                p0, p1 = floats(at, ATOMS), floats(at + 4 * ATOMS, ATOMS)
                p2, p3 = floats(at + 8 * ATOMS, ATOMS), floats(at + 12 * ATOMS, ATOMS)
                for a in range(ATOMS):
                    sum01 = fused(x1, p1[a], fused(x0, p0[a], total[a]))
                    total[a] = fused(x3, p3[a], fused(x2, p2[a], sum01))
                    if pair:
                        sum01 = fused(y1, p1[a], fused(y0, p0[a], other[a]))
                        other[a] = fused(y3, p3[a], fused(y2, p2[a], sum01))
            for i in range(whole, length):
                p0 = floats(panel + 4 * ATOMS * i, ATOMS)
                for a in range(ATOMS):
                    total[a] = fused(x[i], p0[a], total[a])
                    if pair:
                        other[a] = fused(y[i], p0[a], other[a])


@compiled
def _is_among(number: int, chosen: Array, count: int) -> bool:
    found = False
    for i in range(count):
        found |= chosen[i] == number
    return found


@compiled
def _fit(
    turn: int,
    pick: int,
    chosen: Array,
    known: Array,
    factor: Array,
    product: Array,
    atoms: Address,
    kind: int,
    one: Array,
    target: Array,
    total: Array,
    work: Address,
) -> int:
    """Fit a target anew to the atoms taken before and to ``pick``; whether anything is left.

    ``factor`` and ``product`` are the Cholesky factor of the atoms' Gram matrix, and what it makes
    of their products with the target; they grow by a row. What is left goes to ``total``.
    """
    size, width = known.size, target.size
    _row(atoms, kind, pick, one, work)
    along, whole, wanted = _dot(one, target), _dot(one, one), _dot(target, target)
    left = whole
    for m in range(width):
        total[m] = np.float64(target[m])
    for j in range(turn):
        _row(atoms, kind, chosen[j], target, work)
        value = _dot(one, target)
        for m in range(j):
            value -= factor[turn * size + m] * factor[j * size + m]
        value /= factor[j * size + j]
        factor[turn * size + j] = value
        left -= value * value
        along -= value * product[j]
    if not left > _DEPENDENT * whole:
        return 0
    length = math.sqrt(left)
    factor[turn * size + turn] = length
    product[turn] = along / length
    chosen[turn] = pick
    for back in range(turn + 1):
        j = turn - back
        value = product[j]
        for m in range(j + 1, turn + 1):
            value -= factor[m * size + j] * known[m]
        known[j] = value / factor[j * size + j]
        _row(atoms, kind, chosen[j], one, work)
        for m in range(width):
            total[m] -= known[j] * np.float64(one[m])
    rest = 0.0
    for m in range(width):
        rest += total[m] * total[m]
    return 1 if rest > _NOTHING * wanted else 0


@Loop
def pursue(
    targets: Address,
    target_kind: int,
    rows: Address,
    count: int,
    atoms: Address,
    atom_kind: int,
    number: int,
    width: int,
    usable: Address,
    most: int,
    numbers: Address,
    coefficients: Address,
    memory: Address,
    work: Address,
) -> None:
    """See `methods.ops.words.Ops.pursue`; ``memory`` are `sizes.pursuit_bytes`."""
    products = memory  # float64: of the orthogonal basis with the target
    factors = products + 8 * count * most  # the Cholesky factor of the atoms' Gram matrix
    total = doubles(factors + 8 * count * most * most, width)
    residuals = factors + 8 * count * most * most + 8 * width
    one = floats(residuals + 4 * count * width, width)
    other = floats(residuals + 4 * (count + 1) * width, width)
    best = floats(residuals + 4 * (count + 2) * width, count)
    scores = residuals + 4 * (count + 2) * width + 4 * count
    going = ints(scores + 4 * count * ATOMS, count)
    picks = ints(scores + 4 * count * ATOMS + 4 * count, count)
    panel = scores + 4 * count * ATOMS + 8 * count
    places, flags = ints(rows, count), bytes_(usable, number if usable else 0)
    chosen, weights = ints(numbers, count * most), doubles(coefficients, count * most)
    fill(chosen, 0)
    fill(weights, 0.0)
    fill(going, 1)
    for i in range(count):
        _row(targets, target_kind, places[i], floats(residuals + 4 * i * width, width), work)
    for turn in range(most):
        fill(best, np.float32(0.0))
        fill(picks, -1)
        busy = 0
        for i in range(count):
            busy += going[i]
        if not busy:
            break
        for first in range(0, number, ATOMS):
            here = min(ATOMS, number - first)
            _scores(residuals, count, atoms, atom_kind, first, here, width, scores, panel, work)
            for i in range(count):
                if not going[i]:
                    continue
                own = floats(scores + 4 * ATOMS * i, here)
                for a in range(here):
                    score = abs(own[a])
                    if score > best[i]:
                        allowed = not usable or flags[first + a] != 0
                        if allowed and not _is_among(first + a, chosen[i * most :], turn):
                            best[i] = score
                            picks[i] = first + a
        for i in range(count):
            if not going[i]:
                continue
            going[i] = 0
            if picks[i] < 0:
                continue
            place = i * most
            mine, known = chosen[place : place + most], weights[place : place + most]
            factor = doubles(factors + 8 * place * most, most * most)
            product = doubles(products + 8 * place, most)
            residual = floats(residuals + 4 * i * width, width)
            _row(targets, target_kind, places[i], other, work)
            going[i] = _fit(
                *(turn, picks[i], mine, known, factor, product),
                *(atoms, atom_kind, one, other, total, work),
            )
            for m in range(width if going[i] else 0):
                residual[m] = np.float32(total[m])


@Loop
def neighbours(
    targets: Address,
    target_kind: int,
    rows: Address,
    count: int,
    atoms: Address,
    atom_kind: int,
    number: int,
    width: int,
    usable: Address,
    most: int,
    cosine: int,
    numbers: Address,
    closeness: Address,
    memory: Address,
    work: Address,
) -> None:
    """See `methods.ops.words.Ops.neighbours`; ``memory`` are `sizes.neighbours_bytes`.

    Of distances |t|² - 2ta + |a|² all but the first term matters, of cosines all but |t|.
    """
    lengths, residuals = doubles(memory, ATOMS), memory + 8 * ATOMS
    one = floats(residuals + 4 * count * width, width)
    scores = residuals + 4 * (count + 1) * width
    panel = scores + 4 * count * ATOMS
    places, flags = ints(rows, count), bytes_(usable, number if usable else 0)
    chosen, keys = ints(numbers, count * most), doubles(closeness, count * most)
    fill(chosen, 0)
    fill(keys, -math.inf)
    for i in range(count):
        _row(targets, target_kind, places[i], floats(residuals + 4 * i * width, width), work)
    for first in range(0, number, ATOMS):
        here = min(ATOMS, number - first)
        _scores(residuals, count, atoms, atom_kind, first, here, width, scores, panel, work)
        for a in range(here):
            _row(atoms, atom_kind, first + a, one, work)
            lengths[a] = _dot(one, one)
        for i in range(count):
            own = floats(scores + 4 * ATOMS * i, here)
            mine, key = chosen[i * most :], keys[i * most : (i + 1) * most]
            for a in range(here):
                if usable and flags[first + a] == 0:
                    continue
                value = np.float64(own[a])
                if cosine:
                    value = value / math.sqrt(lengths[a]) if lengths[a] > 0.0 else -math.inf
                else:
                    value -= 0.5 * lengths[a]
                if not value > key[most - 1]:
                    continue
                place = most - 1
                while place > 0 and value > key[place - 1]:
                    key[place] = key[place - 1]
                    mine[place] = mine[place - 1]
                    place -= 1
                key[place] = value
                mine[place] = first + a


@Loop
def products_of_rows(
    targets: Address,
    target_kind: int,
    rows: Address,
    count: int,
    atoms: Address,
    atom_kind: int,
    width: int,
    numbers: Address,
    most: int,
    out: Address,
    memory: Address,
    work: Address,
) -> None:
    """See `methods.ops.words.Ops.products_of_rows`; ``memory`` are `sizes.products_bytes`."""
    size = most + 1
    places, chosen = ints(rows, count), ints(numbers, count * most)
    for i in range(count):
        _row(targets, target_kind, places[i], floats(memory, width), work)
        for j in range(most):
            into = floats(memory + 4 * (j + 1) * width, width)
            _row(atoms, atom_kind, chosen[i * most + j], into, work)
        found = doubles(out + 8 * i * size * size, size * size)
        for j in range(size):
            one = floats(memory + 4 * j * width, width)
            for m in range(j + 1):
                value = _dot(one, floats(memory + 4 * m * width, width))
                found[j * size + m] = value
                found[m * size + j] = value


@Loop
def mix_rows(
    atoms: Address,
    kind: int,
    width: int,
    numbers: Address,
    coefficients: Address,
    count: int,
    most: int,
    out: Address,
    memory: Address,
    work: Address,
) -> None:
    """See `methods.ops.words.Ops.mix_rows`; ``memory`` are `sizes.mixing_bytes`."""
    total, one = doubles(memory, width), floats(memory + 8 * width, width)
    chosen, weights = ints(numbers, count * most), doubles(coefficients, count * most)
    for i in range(count):
        fill(total, 0.0)
        for j in range(i * most, (i + 1) * most):
            weight = weights[j]
            if weight == 0.0:
                continue
            _row(atoms, kind, chosen[j], one, work)
            for m in range(width):
                total[m] += weight * np.float64(one[m])
        result = floats(out + 4 * i * width, width)
        for m in range(width):
            result[m] = np.float32(total[m])
