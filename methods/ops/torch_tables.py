"""`methods.ops.tables.TableOps` by torch on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergeloom.engine.graph.kernel import Table

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles, Flags, Numbers, Singles

_DEPENDENT, _NOTHING = 1e-9, 1e-12
"""See `methods.ops.loops.tables`."""


class TorchTables:
    """The table operations of `methods.ops.torch_ops.TorchOps`."""

    def pursue(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int
    ) -> tuple[Numbers, Doubles]:
        x = torch.from_numpy(targets).double()
        count = len(x)
        chosen = torch.zeros(count, max_atoms, dtype=torch.int64, device=x.device)
        coefficients = x.new_zeros(count, max_atoms)
        taken = x.new_zeros(count, max_atoms, atoms.width)
        gram = torch.eye(max_atoms, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
        along = x.new_zeros(count, max_atoms)
        going = torch.ones(count, dtype=torch.bool, device=x.device)
        residual = x.float()
        for turn in range(max_atoms):
            best = residual.new_zeros(count)
            pick = torch.full((count,), -1, dtype=torch.int64, device=x.device)
            new = torch.zeros_like(x)
            for first, block in _blocks(atoms):
                scores = _scores(residual, first, block, usable)
                scores.abs_()
                inside = chosen[:, :turn] - first
                hits = ((inside >= 0) & (inside < scores.shape[1])).nonzero()
                scores[hits[:, 0], inside[hits[:, 0], hits[:, 1]]] = -1.0
                value, place = scores.max(1)
                better = value > best
                best = torch.where(better, value, best)
                pick = torch.where(better, place + first, pick)
                new[better] = block[place[better]].double()
            going &= pick >= 0
            products = (taken[:, :turn] @ new.unsqueeze(2)).squeeze(2)
            whole = (new * new).sum(1)
            gram[:, turn, :turn] = gram[:, :turn, turn] = products
            gram[:, turn, turn] = whole
            part = gram[:, : turn + 1, : turn + 1]
            factor, failed = torch.linalg.cholesky_ex(part)
            left = factor[:, turn, turn].square()
            going &= (failed == 0) & (left > _DEPENDENT * whole)
            stopped = going.logical_not()
            gram[stopped, turn, :turn] = gram[stopped, :turn, turn] = 0.0
            gram[stopped, turn, turn] = 1.0
            chosen[:, turn] = pick.where(going, 0)
            taken[:, turn] = new.where(going.unsqueeze(1), 0.0)
            along[:, turn] = (new * x).sum(1).where(going, 0.0)
            solved = torch.linalg.solve(part, along[:, : turn + 1])
            coefficients[:, : turn + 1] = solved
            fitted = (solved.unsqueeze(1) @ taken[:, : turn + 1]).squeeze(1)
            left = x - fitted
            residual = left.float()
            going &= left.square().sum(1) > _NOTHING * x.square().sum(1)
        return chosen.int().cpu().numpy(), coefficients.cpu().numpy()

    def neighbours(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int, cosine: bool
    ) -> tuple[Numbers, Doubles]:
        x = torch.from_numpy(targets)
        keys = torch.full((len(x), max_atoms), -torch.inf, dtype=torch.float64, device=x.device)
        numbers = torch.zeros(len(x), max_atoms, dtype=torch.int64, device=x.device)
        for first, block in _blocks(atoms):
            scores = _scores(x, first, block, None)
            squares = block.double().square().sum(1)
            value = scores.double()
            value = value / squares.sqrt() if cosine else value - squares / 2
            lacking = (squares == 0) & cosine
            if usable is not None:
                lacking = lacking | _usable(usable, first, scores).logical_not()
            value = value.masked_fill(lacking, -torch.inf)
            found = torch.arange(first, first + value.shape[1], device=x.device).expand_as(value)
            order = torch.sort(torch.cat([keys, value], 1), dim=1, descending=True, stable=True)
            keys = order.values[:, :max_atoms]
            numbers = torch.cat([numbers, found], 1).gather(1, order.indices[:, :max_atoms])
        return numbers.int().cpu().numpy(), keys.cpu().numpy()

    def products_of_rows(self, targets: Singles, atoms: Table, numbers: Numbers) -> Doubles:
        x = torch.from_numpy(targets).double().unsqueeze(1)
        wanted = torch.from_numpy(numbers).long().to(x.device)
        rows = x.new_zeros(*numbers.shape, atoms.width)
        for first, block in _blocks(atoms):
            here = (wanted >= first) & (wanted < first + len(block))
            rows[here] = block[wanted[here] - first].double()
        whole = torch.cat([x, rows], 1)
        return (whole @ whole.transpose(1, 2)).cpu().numpy()

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        total: Tensor | None = None
        for first, block in _blocks(atoms):
            if total is None:
                total = block.new_zeros(len(numbers), atoms.width, dtype=torch.float64)
            wanted = torch.from_numpy(numbers).long().to(block.device) - first
            weights = torch.from_numpy(coefficients).to(block.device)
            here = (wanted >= 0) & (wanted < len(block)) & (weights != 0.0)
            for place in range(numbers.shape[1]):
                own = here[:, place]
                rows = block[wanted[own, place]].double()
                total[own] += rows * weights[own, place, None]
        assert total is not None, "a table without rows"
        return total.float().cpu().numpy()

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        parts = [
            array.view(number, table.width).float().cpu()
            for _, number, array in table.blocks(first, first + count)
        ]
        return torch.cat(parts).numpy()

    def rows_of(self, array: Tensor, width: int) -> Singles:
        return array.reshape(-1, width).float().cpu().numpy()

    def numbers_of(self, array: Tensor) -> Any:
        return array.cpu().numpy()

    def put_rows(self, out: Tensor, places: Numbers, values: Singles) -> None:
        at, content = torch.tensor(places, device=out.device), torch.tensor(values)
        out.view(-1, values.shape[1])[at] = content.to(out.device)


def _blocks(table: Table) -> Iterator[tuple[int, Tensor]]:
    """For each block of a table: the number of its first row, and its rows as float32."""
    for first, number, array in table.blocks():
        yield first, array.view(number, table.width).float()


def _scores(x: Tensor, first: int, block: Tensor, usable: Flags | None) -> Tensor:
    """Products of targets with the atoms of a block; 0 for those that are not usable."""
    scores = x @ block.T
    if usable is not None:
        scores *= _usable(usable, first, scores)
    return scores


def _usable(usable: Flags, first: int, scores: Tensor) -> Tensor:
    flags = torch.from_numpy(usable[first : first + scores.shape[1]])
    return flags.to(scores.device).bool()
