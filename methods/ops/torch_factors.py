"""Low-rank factors of the best approximation, by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PANEL = 64
"""Rows of a long matrix per batch."""


class TorchFactors:
    """The operations of `methods.ops.torch_ops.TorchOps` that compute low-rank factors."""

    def part(self, array: Tensor, start: int, count: int) -> Tensor:
        return array.view(-1)[start : start + count]

    def leading_of_matrix(
        self, matrix: Tensor, shape: tuple[int, int], rank: int, down: Tensor, up: Tensor
    ) -> None:
        rows, by_row = matrix.view(shape), shape[0] < shape[1]
        size, below, above = min(shape), down.view(rank, -1), up.view(-1, rank)
        if not bool(torch.isfinite(rows).all()):
            below.fill_(torch.nan)
            above.fill_(torch.nan)
            return
        gram = torch.zeros(size, size, dtype=torch.float64)
        lines = rows.T if by_row else rows
        for start in range(0, max(shape), _PANEL):
            panel = lines[start : start + _PANEL].double()
            gram.addmm_(panel.T, panel)
        values, vectors = torch.linalg.eigh(gram)
        count = min(rank, int((values > 1e-14 * values[-1]).sum()))
        roots, vectors = values.flip(0)[:count].pow(0.25), vectors.flip(1)[:, :count]
        below.zero_()
        above.zero_()
        if by_row:
            above[:, :count] = vectors * roots
        else:
            below[:count] = vectors.T * roots[:, None]
        for start in range(0, max(shape), _PANEL):
            part = slice(start, start + _PANEL)
            if by_row:
                below[:count, part] = vectors.T @ rows[:, part].double() / roots[:, None]
            else:
                above[part, :count] = rows[part].double() @ vectors / roots

    def leading_of_product(
        self,
        downs: Sequence[Tensor],
        ups: Sequence[Tensor],
        coefficients: Sequence[float],
        shape: tuple[int, int],
        rank: int,
        down: Tensor,
        up: Tensor,
    ) -> None:
        rows, columns = shape
        lower = torch.cat([each.reshape(-1, columns).double() for each in downs])
        scaled = zip(ups, coefficients, strict=True)
        joined = torch.cat([each.reshape(rows, -1).double() * by for each, by in scaled], dim=1)
        above, inner = torch.linalg.qr(joined)
        below, outer = torch.linalg.qr(lower.T)
        left, values, right = _svd(inner @ outer.T)
        rounding = values <= 1e-7 * values.amax()  # all false for NaN
        count = min(rank, values.numel() - int(rounding.sum()))
        roots = values[:count].sqrt()
        up.view(-1, rank).zero_()[:, :count] = above @ (left[:, :count] * roots)
        down.view(rank, -1).zero_()[:count] = roots[:, None] * (right[:count] @ below.T)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values; NaN if the matrix is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        shape = matrix.shape[0], min(matrix.shape), matrix.shape[1]
        sizes = shape[:2], shape[1:2], shape[1:]
        broken = [torch.full(size, torch.nan, dtype=matrix.dtype) for size in sizes]
        return broken[0], broken[1], broken[2]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right
