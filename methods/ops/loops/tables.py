"""Approximate target rows by rows of a table: sparse codes, nearest neighbours, combinations.

A *table* has rows of ``width`` elements of an `ElementType`, called *atoms*, and is passed block by
block: atoms ``first`` to ``first + number`` at address ``atoms``. *Targets* are float32 rows, up to
a few hundred at a time. `ATOM_TILE` atoms are compared at once; each product of a target and an
atom is summed in one fixed order.
"""

from __future__ import annotations

import math

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    copy,
    doubles,
    fill,
    floats,
    fused,
    int32s,
    uint8s,
)
from mergeloom.methods.ops.loops.convert import widened
from mergeloom.methods.ops.loops.sizes import ATOM_TILE, BLOCK

_DEPENDENT = 1e-9
"""An atom depends linearly on others if at most this fraction of its squared length is independent
of them."""
_NOTHING = 1e-12
"""A target is fitted if its residual has at most this fraction of its squared length, which is
beyond the precision of float32."""


@compiled
def _row(address: Address, kind: int, number: int, out: Array, work: Address) -> None:
    """Write row ``number`` of a table as float32."""
    width = out.size
    for start in range(0, width, BLOCK):
        block = out[start : min(start + BLOCK, width)]
        widened(address, kind, number * width + start, block, work)


@compiled
def _dot(one: Array, other: Array) -> float:
    """The float64 dot product of float32 numbers, in eight partial sums."""
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = 0.0
    whole = one.size // 8 * 8
    for i in range(0, whole, 8):
        t0 += np.float64(one[i]) * np.float64(other[i])
        t1 += np.float64(one[i + 1]) * np.float64(other[i + 1])
        t2 += np.float64(one[i + 2]) * np.float64(other[i + 2])
        t3 += np.float64(one[i + 3]) * np.float64(other[i + 3])
        t4 += np.float64(one[i + 4]) * np.float64(other[i + 4])
        t5 += np.float64(one[i + 5]) * np.float64(other[i + 5])
        t6 += np.float64(one[i + 6]) * np.float64(other[i + 6])
        t7 += np.float64(one[i + 7]) * np.float64(other[i + 7])
    total = ((t0 + t4) + (t1 + t5)) + ((t2 + t6) + (t3 + t7))
    for i in range(whole, one.size):
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
    """Write the dot products of targets with ``number`` atoms from ``first`` on: float32.

    ``out`` is (count, `ATOM_TILE`); columns from ``number`` on are undefined.
    """
    fill(floats(out, count * ATOM_TILE), np.float32(0.0))
    side = floats(panel, ATOM_TILE * ATOM_TILE)
    fill(side, np.float32(0.0))
    block = floats(panel + 4 * ATOM_TILE * ATOM_TILE, ATOM_TILE)
    for column in range(0, width, ATOM_TILE):
        length = min(ATOM_TILE, width - column)
        for atom in range(number):
            widened(atoms, kind, (first + atom) * width + column, block[:length], work)
            for i in range(length):
                side[i * ATOM_TILE + atom] = block[i]
        for target in range(0, count, 2):
            pair = 1 if target + 1 < count else 0
            x = floats(targets + 4 * (target * width + column), length)
            y = floats(targets + 4 * ((target + pair) * width + column), length)
            total = floats(out + 4 * ATOM_TILE * target, ATOM_TILE)
            other = floats(out + 4 * ATOM_TILE * (target + pair), ATOM_TILE)
            whole = length // 4 * 4
            for i in range(0, whole, 4):
                x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
                y0, y1, y2, y3 = y[i], y[i + 1], y[i + 2], y[i + 3]
                at, step = panel + 4 * ATOM_TILE * i, 4 * ATOM_TILE
                p0, p1 = floats(at, ATOM_TILE), floats(at + step, ATOM_TILE)
                p2, p3 = floats(at + 2 * step, ATOM_TILE), floats(at + 3 * step, ATOM_TILE)
                for a in range(ATOM_TILE):
                    sum01 = fused(x1, p1[a], fused(x0, p0[a], total[a]))
                    total[a] = fused(x3, p3[a], fused(x2, p2[a], sum01))
                    if pair:
                        sum01 = fused(y1, p1[a], fused(y0, p0[a], other[a]))
                        other[a] = fused(y3, p3[a], fused(y2, p2[a], sum01))
            for i in range(whole, length):
                p0 = floats(panel + 4 * ATOM_TILE * i, ATOM_TILE)
                for a in range(ATOM_TILE):
                    total[a] = fused(x[i], p0[a], total[a])
                    if pair:
                        other[a] = fused(y[i], p0[a], other[a])


@compiled
def _is_among(number: int, chosen: Array, count: int) -> bool:
    """Whether ``number`` is one of the first ``count`` chosen."""
    found = False
    for i in range(count):
        found |= chosen[i] == number
    return found


@compiled
def _fit(
    turn: int,
    factor: Array,
    product: Array,
    known: Array,
    taken: Address,
    target: Array,
    total: Array,
) -> int:
    """Least-squares fit of a target by the atoms ``taken``, of which number ``turn`` is new.

    Returns 1 if a residual is left, 0 if the target is fitted, -1 if the new atom depends linearly
    on the others. ``factor`` is the Cholesky factor L of the atoms' Gram matrix and ``product``
    L⁻¹ · (products of atoms and target); both grow by a row. ``known`` receives the coefficients,
    ``total`` the residual.
    """
    size, width = known.size, target.size
    new = floats(taken + 4 * turn * width, width)
    along, whole, wanted = _dot(new, target), _dot(new, new), _dot(target, target)
    left = whole
    for j in range(turn):
        value = _dot(new, floats(taken + 4 * j * width, width))
        for m in range(j):
            value -= factor[turn * size + m] * factor[j * size + m]
        value /= factor[j * size + j]
        factor[turn * size + j] = value
        left -= value * value
        along -= value * product[j]
    if not left > _DEPENDENT * whole:
        return -1
    length = math.sqrt(left)
    factor[turn * size + turn] = length
    product[turn] = along / length
    for m in range(width):
        total[m] = np.float64(target[m])
    for back in range(turn + 1):
        j = turn - back
        value = product[j]
        for m in range(j + 1, turn + 1):
            value -= factor[m * size + j] * known[m]
        known[j] = value / factor[j * size + j]
        one = floats(taken + 4 * j * width, width)
        for m in range(width):
            total[m] -= known[j] * np.float64(one[m])
    rest = 0.0
    for m in range(width):
        rest += total[m] * total[m]
    return 1 if rest > _NOTHING * wanted else 0


@compiled
def _state(memory: Address, count: int, most: int, width: int) -> tuple[int, int, int, int, int]:
    """Addresses in a pursuit's memory: residuals of targets, atoms taken, best scores, scores, and
    flags of unfinished targets. Products, factors and a total precede them."""
    rest = memory + 8 * (count * most * (most + 1) + width)
    taken = rest + 4 * count * width
    best = taken + 4 * count * most * width
    scores = best + 4 * count
    return rest, taken, best, scores, scores + 4 * count * ATOM_TILE


@Loop
def pursue_scan(
    turn: int,
    targets: Address,
    count: int,
    atoms: Address,
    kind: int,
    first: int,
    number: int,
    width: int,
    usable: Address,
    most: int,
    numbers: Address,
    memory: Address,
    work: Address,
) -> None:
    """Find the best atom of each target in a block of the table, for step ``turn`` of a pursuit.

    See `methods.ops.tables.TableOps.pursue`. ``memory`` has `sizes.pursuit_bytes`; it is
    initialised with the first block of a turn.
    """
    rest, taken, bests, scores, goings = _state(memory, count, most, width)
    best, going = floats(bests, count), int32s(goings, count)
    picks = int32s(goings + 4 * count, count)
    panel = goings + 8 * count
    flags = uint8s(usable, number if usable else 0)
    chosen = int32s(numbers, count * most)
    if first == 0:
        fill(best, np.float32(0.0))
        fill(picks, -1)
        if turn == 0:
            fill(going, 1)
            copy(floats(targets, count * width), floats(rest, count * width))
    busy = 0
    for i in range(count):
        busy += going[i]
    for start in range(0, number if busy else 0, ATOM_TILE):
        here = min(ATOM_TILE, number - start)
        _scores(rest, count, atoms, kind, start, here, width, scores, panel, work)
        for i in range(count):
            if not going[i]:
                continue
            own = floats(scores + 4 * ATOM_TILE * i, here)
            for a in range(here):
                score = abs(own[a])
                if score > best[i]:
                    allowed = not usable or flags[start + a] != 0
                    if allowed and not _is_among(first + start + a, chosen[i * most :], turn):
                        best[i] = score
                        picks[i] = first + start + a
    for i in range(count):
        if going[i] and picks[i] >= first:
            into = floats(taken + 4 * (i * most + turn) * width, width)
            _row(atoms, kind, picks[i] - first, into, work)


@Loop
def pursue_fit(
    turn: int,
    targets: Address,
    count: int,
    width: int,
    most: int,
    numbers: Address,
    coefficients: Address,
    memory: Address,
    work: Address,
) -> None:
    """Fit the targets by the atoms found in this turn (`pursue_scan`)."""
    rest, taken, _, _, goings = _state(memory, count, most, width)
    going, picks = int32s(goings, count), int32s(goings + 4 * count, count)
    factors = memory + 8 * count * most
    total = doubles(memory + 8 * count * most * (most + 1), width)
    chosen, weights = int32s(numbers, count * most), doubles(coefficients, count * most)
    for i in range(count):
        if not going[i]:
            continue
        going[i] = 0
        if picks[i] < 0:
            continue
        place = i * most
        left = _fit(
            turn,
            doubles(factors + 8 * place * most, most * most),
            doubles(memory + 8 * place, most),
            weights[place : place + most],
            taken + 4 * i * most * width,
            floats(targets + 4 * i * width, width),
            total,
        )
        if left >= 0:
            chosen[place + turn] = picks[i]
        if left > 0:
            going[i] = 1
            residual = floats(rest + 4 * i * width, width)
            for m in range(width):
                residual[m] = np.float32(total[m])


@Loop
def neighbours_scan(
    targets: Address,
    count: int,
    atoms: Address,
    kind: int,
    first: int,
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
    """Update the nearest neighbours of targets with a block of the table.

    See `methods.ops.tables.TableOps.neighbours`. ``memory`` has `sizes.neighbours_bytes`.
    ``closeness`` orders atoms a for a target t: t·a - ½|a|², which decreases with the distance, or
    t·a / |a| for the ``cosine``.
    """
    lengths, one = doubles(memory, ATOM_TILE), floats(memory + 8 * ATOM_TILE, width)
    scores = memory + 8 * ATOM_TILE + 4 * width
    panel = scores + 4 * count * ATOM_TILE
    flags = uint8s(usable, number if usable else 0)
    chosen, keys = int32s(numbers, count * most), doubles(closeness, count * most)
    for start in range(0, number, ATOM_TILE):
        here = min(ATOM_TILE, number - start)
        _scores(targets, count, atoms, kind, start, here, width, scores, panel, work)
        for a in range(here):
            _row(atoms, kind, start + a, one, work)
            lengths[a] = _dot(one, one)
        for i in range(count):
            own = floats(scores + 4 * ATOM_TILE * i, here)
            mine, key = chosen[i * most :], keys[i * most : (i + 1) * most]
            for a in range(here):
                if usable and flags[start + a] == 0:
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
                mine[place] = first + start + a


@Loop
def gather_scan(
    atoms: Address,
    kind: int,
    first: int,
    number: int,
    width: int,
    numbers: Address,
    count: int,
    out: Address,
    work: Address,
) -> None:
    """Write the rows ``numbers`` that are in a block of the table, as float32."""
    wanted = int32s(numbers, count)
    for i in range(count):
        row = wanted[i] - first
        if 0 <= row < number:
            _row(atoms, kind, row, floats(out + 4 * i * width, width), work)


@Loop
def products_of_rows(
    targets: Address, count: int, rows: Address, width: int, most: int, out: Address, work: Address
) -> None:
    """Write Gram matrices: `methods.ops.tables.TableOps.products_of_rows`.

    ``rows`` (float32) has the ``most`` atoms of each target.
    """
    size = most + 1
    for i in range(count):
        found = doubles(out + 8 * i * size * size, size * size)
        own = rows + 4 * i * most * width
        for j in range(size):
            at = own + 4 * (j - 1) * width if j else targets + 4 * i * width
            one = floats(at, width)
            for m in range(j + 1):
                at = own + 4 * (m - 1) * width if m else targets + 4 * i * width
                value = _dot(one, floats(at, width))
                found[j * size + m] = value
                found[m * size + j] = value


@Loop
def mix_scan(
    atoms: Address,
    kind: int,
    first: int,
    number: int,
    width: int,
    numbers: Address,
    coefficients: Address,
    count: int,
    most: int,
    memory: Address,
    work: Address,
) -> None:
    """Add the terms of a block of the table: `methods.ops.tables.TableOps.mix_rows`.

    ``memory`` has `sizes.mixing_bytes` and begins with the float64 sums.
    """
    one = floats(memory + 8 * count * width, width)
    chosen, weights = int32s(numbers, count * most), doubles(coefficients, count * most)
    for i in range(count):
        total = doubles(memory + 8 * i * width, width)
        for j in range(i * most, (i + 1) * most):
            weight, row = weights[j], chosen[j] - first
            if weight == 0.0 or row < 0 or row >= number:
                continue
            _row(atoms, kind, row, one, work)
            for m in range(width):
                total[m] += weight * np.float64(one[m])
