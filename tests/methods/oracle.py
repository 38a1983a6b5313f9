"""Every merge method on whole tensors in float64, straight from the papers.

Nothing here is fast, and nothing is shared with what is tested. Task vectors are rounded to
float32 as the definition says; everything after that is float64. An oracle returns the result,
the magnitudes that were added up (which bound rounding), and where a decision hangs on rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]


@dataclass
class Answer:
    value: torch.Tensor
    scale: torch.Tensor
    either: torch.Tensor | None = None


def doubles(tensors: Tensors) -> list[torch.Tensor]:
    return [tensor.to(torch.float64) for tensor in tensors]


def differences(base: torch.Tensor, others: Tensors) -> list[torch.Tensor]:
    return [(t.float() - base.float()).double() for t in others]


# --- linear combinations ------------------------------------------------------------------------


def linear(inputs: Tensors, weights: Sequence[float], normalize: bool = True) -> Answer:
    divisor = sum(weights) if normalize else 1.0
    terms = [w / divisor * t for w, t in zip(weights, doubles(inputs), strict=True)]
    return Answer(torch.stack(terms).sum(0), torch.stack(terms).abs().sum(0))


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> Answer:
    a, b = doubles((a, b))

    def unit(v: torch.Tensor) -> torch.Tensor:
        norm = v.norm()
        return v / norm if norm > 1e-8 else v

    cosine = float((unit(a) * unit(b)).sum())
    if abs(cosine) > 0.9995:
        x, y = 1 - t, t
    else:
        omega = math.acos(cosine)
        x = math.sin((1 - t) * omega) / math.sin(omega)
        y = math.sin(t * omega) / math.sin(omega)
    return Answer(x * a + y * b, (x * a).abs() + (y * b).abs())


# --- task vectors -------------------------------------------------------------------------------


def largest(vector: torch.Tensor, keep: int) -> torch.Tensor:
    """Mask of the ``keep`` largest magnitudes, ties by lowest index."""
    order = torch.sort(-vector.abs().reshape(-1), stable=True).indices
    mask = torch.zeros(vector.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view(vector.shape)


def match_l1(vector: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    before, after = float(vector.abs().sum()), float(kept.abs().sum())
    return kept * (before / after) if before >= 1e-7 and after >= 1e-7 else kept


def add_up(
    base: torch.Tensor, sparse: Tensors, weights: Sequence[float], normalize: bool, lam: float
) -> Answer:
    terms = torch.stack([w * t for w, t in zip(weights, sparse, strict=True)])
    divisor = sum(weights) if normalize and any(weights) else 1.0
    value = base.double() + lam * terms.sum(0) / divisor
    return Answer(value, base.double().abs() + abs(lam / divisor) * terms.abs().sum(0))


def elect(
    base: torch.Tensor,
    sparse: Tensors,
    weights: Sequence[float],
    normalize: bool,
    lam: float,
    votes: Sequence[float] | None = None,
) -> Answer:
    vectors = torch.stack(list(sparse))
    weight = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * base.dim())
    vote = weight if votes is None else torch.tensor(votes).double().view(weight.shape)
    ballots = vectors * vote
    sign = torch.where(ballots.sum(0) >= 0, 1.0, -1.0)
    agrees = (ballots.sign() == sign).double()
    total = (vectors * weight * agrees).sum(0)
    scale = base.double().abs() + abs(lam) * (vectors * weight).abs().sum(0)
    if normalize:
        divisor = (weight * agrees).sum(0)
        divisor = torch.where(divisor.abs() <= 1e-8, 1.0, divisor)
        total = total / divisor
        scale = scale / divisor.abs().clamp_max(1.0)
    mass = ballots.abs().sum(0)
    either = (ballots.sum(0).abs() <= 1e-5 * mass) & (mass > 0)
    return Answer(base.double() + lam * total, scale, either)


def task_arithmetic(
    base: torch.Tensor,
    others: Tensors,
    weights: Sequence[float],
    normalize: bool = False,
    lam: float = 1.0,
) -> Answer:
    return add_up(base, differences(base, others), weights, normalize, lam)


def ties(
    base: torch.Tensor,
    others: Tensors,
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = True,
    lam: float = 1.0,
    rescale: bool = False,
) -> Answer:
    sparse = []
    for vector, density in zip(differences(base, others), densities, strict=True):
        keep = vector.numel() if density >= 1 else int(density * vector.numel())
        kept = vector * largest(vector, keep)
        sparse.append(match_l1(vector, kept) if rescale and density < 1 else kept)
    return elect(base, sparse, weights, normalize, lam)
