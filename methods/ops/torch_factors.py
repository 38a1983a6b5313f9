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
        self, matrix: Tensor, shape: tuple[int, int], rank: int, up: bool, out: Tensor
    ) -> None:
        rows, by_row = matrix.view(shape), shape[0] < shape[1]
        size, factor = min(shape), out.view((-1, rank) if up else (rank, -1))
        if not bool(torch.isfinite(rows).all()):
            out.fill_(torch.nan)
            return
        gram = torch.zeros(size, size, dtype=torch.float64)
        lines = rows.T if by_row else rows
        for start in range(0, max(shape), _PANEL):
            panel = lines[start : start + _PANEL].double()
            gram.addmm_(panel.T, panel)
        values, vectors = torch.linalg.eigh(gram)
        count = min(rank, int((values > 1e-14 * values[-1]).sum()))
        roots, vectors = values.flip(0)[:count].sqrt_(), vectors.flip(1)[:, :count]
        factor.zero_()
        if by_row == up:
            own = vectors * roots if up else vectors.T
            (factor[:, :count] if up else factor[:count]).copy_(own)
            return
        for start in range(0, max(shape), _PANEL):
            part = slice(start, start + _PANEL)
            if up:
                factor[part, :count] = (rows[part].double() @ vectors).float()
            else:
                factor[:count, part] = (vectors.T @ rows[:, part].double() / roots[:, None]).float()

    def leading_of_product(
        self,
        downs: Sequence[Tensor],
        ups: Sequence[Tensor],
        coefficients: Sequence[float],
        shape: tuple[int, int],
        rank: int,
        up: bool,
        out: Tensor,
    ) -> None:
        rows, columns = shape
        down = torch.cat([each.reshape(-1, columns).double() for each in downs])
        scaled = zip(ups, coefficients, strict=True)
        joined = torch.cat([each.reshape(rows, -1).double() * by for each, by in scaled], dim=1)
        above, inner = torch.linalg.qr(joined)
        below, outer = torch.linalg.qr(down.T)
        left, values, right = _svd(inner @ outer.T)
        _write_factor((above @ left, values, right @ below.T), rank, up, out)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values; NaN if the matrix is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        shape = matrix.shape[0], min(matrix.shape), matrix.shape[1]
        sizes = shape[:2], shape[1:2], shape[1:]
        broken = [torch.full(size, torch.nan, dtype=matrix.dtype) for size in sizes]
        return broken[0], broken[1], broken[2]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _write_factor(found: tuple[Tensor, Tensor, Tensor], rank: int, up: bool, out: Tensor) -> None:
    """Write U·S or Vᵀ of the largest singular values; zero for those that are rounding noise."""
    left, values, right = found
    rounding = values <= 1e-7 * values.amax()
    kept = min(rank, values.numel() - int(rounding.sum()))
    out.zero_()
    if up:
        out.view(-1, rank)[:, :kept].copy_(left[:, :kept] * values[:kept])
    else:
        out.view(rank, -1)[:kept].copy_(right[:kept])
