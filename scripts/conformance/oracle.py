"""Every merge method on whole tensors in float64, implemented from the papers.

Simple instead of fast, and independent of the code under test. Task vectors are rounded to float32
as in the definition; everything after that is float64. An oracle returns the result, the sum of
magnitudes that were added (a bound of rounding), and the elements whose decision depends on
rounding.
"""

from __future__ import annotations

import hashlib
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


def nuslerp(
    inputs: Tensors, weights: Sequence[float], base: torch.Tensor | None, dim: int | None
) -> Answer:
    """``dim``: the dimension that vectors run along; ``None``: all of them."""
    vectors = doubles(inputs) if base is None else differences(base, inputs)
    shape = vectors[0].shape
    if dim is None or len(shape) < 2:
        vectors, dim = [v.reshape(-1) for v in vectors], 0
    a, b = vectors
    t = 0.5 if abs(sum(weights)) < 1e-6 else weights[1] / sum(weights)

    def unit(v: torch.Tensor) -> torch.Tensor:
        norm = v.norm(dim=dim, keepdim=True)
        return torch.where(norm > 1e-8, v / norm, 0.0)

    cosine = (unit(a) * unit(b)).sum(dim, keepdim=True).clamp(-1, 1)
    omega = torch.acos(cosine)
    straight = omega.sin() < 1e-8
    x = torch.where(straight, 1 - t, ((1 - t) * omega).sin() / omega.sin())
    y = torch.where(straight, t, (t * omega).sin() / omega.sin())
    value, scale = x * a + y * b, (x * a).abs() + (y * b).abs()
    # For nearly opposite directions the plane of the arc depends on rounding, however it is found.
    scale = scale / (1 + cosine).clamp_min(1e-6).clamp_max(1)
    return on_base(base, value.view(shape), scale.view(shape))


def on_base(base: torch.Tensor | None, value: torch.Tensor, scale: torch.Tensor) -> Answer:
    if base is None:
        return Answer(value, scale)
    return Answer(base.double() + value, base.double().abs() + scale)


def multislerp(
    inputs: Tensors,
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    normalize: bool = True,
) -> Answer:
    """To the tangent space at the mean, and back with the exponential map."""
    vectors = doubles(inputs) if base is None else differences(base, inputs)
    if normalize:
        weights = [w / sum(weights) for w in weights]
    lengths = [float(v.norm()) for v in vectors]
    units = [v / n if n > 1e-8 else v * 0 for v, n in zip(vectors, lengths, strict=True)]
    mean = torch.stack([w * u for w, u in zip(weights, units, strict=True)]).sum(0)
    spread = float(mean.norm())
    length = sum(w * n for w, n in zip(weights, lengths, strict=True))
    if spread < 1e-7:
        if not any(lengths):
            return on_base(base, mean, mean)
        first, second = (w / (sum(weights) or 1.0) for w in weights[:2])
        return on_base(
            base,
            first * vectors[0] + second * vectors[1],
            abs(first) * vectors[0].abs() + abs(second) * vectors[1].abs(),
        )
    mean = mean / spread
    tangents = [w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True)]
    tangent = torch.stack(tangents).sum(0)
    step = float(tangent.norm())
    point = mean
    if step > 1e-8:
        point = math.cos(step) * mean + math.sin(step) * tangent / step
    scale = sum(abs(w) * u.abs() for w, u in zip(weights, units, strict=True))
    return on_base(base, point * length, torch.as_tensor(scale) * abs(length) / spread)


def karcher(inputs: Tensors, max_iter: int = 10, tol: float = 1e-5) -> Answer:
    vectors = doubles(inputs)
    lengths = [float(v.norm()) for v in vectors]
    units = [v / n for v, n in zip(vectors, lengths, strict=True) if n > 1e-8]
    if not units:
        return Answer(vectors[0] * 0, vectors[0] * 0)
    mean = torch.stack(units).mean(0)
    left = float(mean.norm())
    mean = mean / left if left > 1e-7 else units[0]
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for unit in units:
            along = float((unit * mean).sum().clamp(-1, 1))
            angle = math.acos(along)
            if math.sin(angle) >= 1e-7:
                tangent += angle / math.sin(angle) * (unit - along * mean) / len(units)
        step = float(tangent.norm())
        if step <= tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
    length = sum(lengths) / len(lengths)
    scale = torch.stack([u.abs() for u in units]).sum(0) * length
    # Nearly opposite directions cancel, and the small remainder is scaled up.
    return Answer(mean * length, scale * max(1.0, 1 / (len(units) * max(left, 1e-7))))


def model_stock(base: torch.Tensor, others: Tensors, filter_wise: bool = False) -> Answer:
    taus = differences(base, others)
    rows = [t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in taus]
    if not filter_wise:
        rows = [row.reshape(1, -1) for row in rows]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        norms = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        dot = (a * b).sum(1, keepdim=True)
        return torch.where((norms[0] > 1e-8) & (norms[1] > 1e-8), dot / norms[0] / norms[1], 0.0)

    count = len(taus)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    mean = torch.stack([cosine(rows[i], rows[j]) for i, j in pairs]).mean(0)
    denominator = 1 + (count - 1) * mean
    t = torch.where(denominator.abs() < 1e-8, 0.0, count * mean / denominator)
    total = torch.stack(rows).sum(0) / count * t
    scale = torch.stack(rows).abs().sum(0) * t.abs().clamp_min(1) / denominator.abs().clamp(1e-6, 1)
    shape = base.shape
    return on_base(base, total.view(shape), scale.view(shape))


# --- task vectors -------------------------------------------------------------------------------


def largest(vector: torch.Tensor, keep: int) -> torch.Tensor:
    """Mask of the ``keep`` largest magnitudes; of equal ones, the lowest indices."""
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


def breadcrumbs(
    base: torch.Tensor,
    others: Tensors,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    normalize: bool = False,
    lam: float = 1.0,
    rescale: bool = False,
    *,
    signs: bool,
) -> Answer:
    sparse = []
    for vector, density, gamma in zip(differences(base, others), densities, gammas, strict=True):
        total = vector.numel()
        keep = int(density * total)
        skip = min(int(gamma * total), total - keep)
        kept = vector
        if density < 1:
            kept = vector * (largest(vector, skip + keep) & ~largest(vector, skip))
        sparse.append(match_l1(vector, kept) if rescale and density < 1 else kept)
    combine = elect if signs else add_up
    return combine(base, sparse, weights, normalize, lam)


def variance(base: torch.Tensor, others: Tensors) -> torch.Tensor:
    """Sum of squared deviations of task vectors from their mean, float32: it orders positions.

    Relative to the first, so that equal ones have none.
    """
    taus = [tau.float() for tau in differences(base, others)]
    small = [tau - taus[0] for tau in taus]
    mean = torch.zeros_like(small[0])
    for tau in small:
        mean = mean + tau
    mean = mean / len(small)
    total = torch.zeros_like(mean)
    for tau in small:
        total = total + (tau - mean) * (tau - mean)
    return total


def sce(
    base: torch.Tensor,
    others: Tensors,
    select_topk: float = 1.0,
    selection: torch.Tensor | None = None,
    even: bool = False,
) -> Answer:
    """``selection`` and ``even`` replace the method's positions and weights."""
    taus = differences(base, others)
    if selection is None and select_topk < 1:
        spread = variance(base, others)
        selection = largest(spread, int(int((spread != 0).sum()) * select_topk))
    if selection is not None:
        taus = [tau * selection for tau in taus]
    squares = [float(tau.square().sum()) for tau in taus]
    total = sum(squares)
    weights = [square / total for square in squares] if total and not even else [1.0] * len(taus)
    vectors = torch.stack(taus)
    weight = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * base.dim())
    agrees = (vectors.sign() == torch.where(vectors.sum(0) >= 0, 1.0, -1.0)).double() * weight
    divisor = agrees.sum(0)
    value = torch.where(divisor > 0, (vectors * agrees).sum(0) / divisor, 0.0)
    either = vectors.sum(0).abs() <= 1e-5 * vectors.abs().sum(0)
    either &= vectors.abs().sum(0) > 0
    return Answer(base.double() + value, base.double().abs() + vectors.abs().amax(0) * 4, either)


# --- random choice ------------------------------------------------------------------------------


def digest(*parts: object) -> int:
    content = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def drawn(seed: int, tensor: str, number: int, shape: Sequence[int]) -> torch.Tensor:
    """The random generator in integers: uniform in [0, 1), a multiple of 2⁻³²."""
    key, word = digest(seed, number, tensor), 1 << 32
    numbers = []
    for index in range(math.prod(shape)):
        first, second = divmod(digest(key, index // word), word)
        x = (first + index * 0x9E3779B1) % word
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) % word ^ second
        x = ((x ^ (x >> 15)) * 0xD35A2D97) % word
        numbers.append(((x + word // 2) % word) / word)
    return torch.tensor(numbers, dtype=torch.float64).view(tuple(shape))


def dare(
    base: torch.Tensor,
    others: Tensors,
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = False,
    lam: float = 1.0,
    rescale: bool = True,
    *,
    signs: bool,
    seed: int,
    tensor: str,
) -> Answer:
    sparse = []
    for number, (vector, density) in enumerate(
        zip(differences(base, others), densities, strict=True)
    ):
        keep = drawn(seed, tensor, number, base.shape) < density
        kept = vector * keep
        sparse.append(match_l1(vector, kept) if rescale and density < 1 else kept)
    combine = elect if signs else add_up
    return combine(base, sparse, weights, normalize, lam)


def della(
    base: torch.Tensor,
    others: Tensors,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    normalize: bool,
    lam: float = 1.0,
    rescale: bool = True,
    *,
    signs: bool,
    seed: int,
    tensor: str,
) -> Answer:
    sparse = []
    for number, vector in enumerate(differences(base, others)):
        density, epsilon = densities[number], epsilons[number]
        kept = vector * (density > 0)
        if 0 < density < 1:
            rows = vector.reshape(-1, vector.shape[-1] if vector.dim() else 1)
            probability = torch.empty_like(rows)
            for row, chances in zip(rows, probability, strict=True):
                n = len(row)
                for rank, place in enumerate(torch.sort(-row.abs(), stable=True).indices):
                    spread = 1 - 2 * rank / (n - 1) if n > 1 else 0
                    chances[place] = density + epsilon * spread
            keep = drawn(seed, tensor, number, base.shape) < probability.view(vector.shape)
            kept = vector * keep
        sparse.append(match_l1(vector, kept) if rescale and 0 < density < 1 else kept)
    combine = elect if signs else add_up
    return combine(base, sparse, weights, normalize, lam)


# --- elements that one or several models changed ------------------------------------------------


def ram(
    base: torch.Tensor, others: Tensors, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.0
) -> Answer:
    limit = float(torch.tensor(epsilon, dtype=torch.float32))
    taus = [torch.where(tau.abs() > limit, tau, 0.0) for tau in differences(base, others)]
    by = torch.stack([tau != 0 for tau in taus]).sum(0)
    value = torch.stack(taus).sum(0) / by.clamp_min(1)
    for tau in taus:
        unique, shared = int((by == 1)[tau != 0].sum()), int((by > 1)[tau != 0].sum())
        gain = r * min(shared / max(unique, 1), alpha)
        value = value + tau * (by == 1) * gain
    scale = torch.stack(taus).abs().sum(0) * (1 + 2 * abs(r) * alpha)
    return Answer(base.double() + value, base.double().abs() + scale)


# --- a base and one other model -----------------------------------------------------------------


def nearswap(base: torch.Tensor, other: torch.Tensor, t: float) -> Answer:
    a, b = doubles((base, other))
    distance = (a - b).abs()
    w = torch.where(distance > 0, t / distance, 1.0).clamp(0, 1)
    return Answer(w * b + (1 - w) * a, a.abs() + b.abs())


def arcee_fusion(base: torch.Tensor, other: torch.Tensor) -> Answer:
    a, b = (t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in doubles((base, other)))
    p, q = b.log_softmax(1), a.log_softmax(1)
    score = ((b - a).abs() * (p.exp() * (p - q)).sum(1, keepdim=True).clamp_min(0)).reshape(-1)
    order = score.sort().values
    low, middle, high = (float(order[int(share * (len(order) - 1))]) for share in (0.25, 0.5, 0.75))
    limit = middle + 1.5 * (high - low)
    chosen = torch.where(score.view(base.shape) >= limit, other.double(), base.double())
    # Scores are differences of logarithms, each exact to some 1e-16 of magnitudes up to hundreds.
    doubt = 1e-6 * abs(limit) + 1e-12 * float((b - a).abs().max()) * (1 + float(b.abs().max()))
    either = ((score - limit).abs() <= doubt).view(base.shape)
    return Answer(chosen, torch.zeros_like(chosen), either)
