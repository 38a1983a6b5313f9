"""Reference implementation of every built-in method on whole tensors in float64, to check kernels.

Written from the formulas only: nothing is tiled, optimised, or shared with the kernels; but task
vectors are rounded to float32, and random numbers follow `methods.ops.draws`. Evaluation gives the
result, the sum of the magnitudes added up for it, which bounds the error of float32, and a mask of
elements where a decision depends on rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mergeloom.engine.base.records import dataclass
from mergeloom.methods.declare import Method, TensorMerge

NOISE = 2.0**-21
"""Relative rounding error of a short chain of float32 operations."""

TENSORS_PER_INPUT = 4
TENSORS = 8
"""Maximum number of float64 tensors in memory during an evaluation: per input, and additional."""


@dataclass(frozen=True)
class ReferenceResult:
    """A float64 result.

    ``scale`` bounds the sum of the magnitudes added up for each element. ``undecided`` marks the
    elements where a decision, such as a sign election, depends on rounding.
    """

    value: Tensor
    scale: Tensor
    undecided: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """One tensor to be merged: the stored tensors of the models, and the parameters."""

    merge: TensorMerge
    inputs: Sequence[Tensor]

    @property
    def base(self) -> Tensor | None:
        return None if self.merge.base is None else self.inputs[self.merge.base]

    @property
    def others(self) -> list[Tensor]:
        return [self.inputs[i] for i in self.merge.others]

    @property
    def required_base(self) -> Tensor:
        """The base, for methods that require one."""
        assert self.base is not None
        return self.base

    def of_models(self, name: str) -> tuple[float, ...]:
        """A parameter of each model except the base."""
        return self.merge.weights(name)

    def setting(self, name: str) -> float:
        """A global parameter."""
        return float(self.merge.settings[name])

    def vectors(self) -> list[Tensor]:
        """The tensors of the models or, with a base, their task vectors."""
        if self.base is None:
            return [tensor.double() for tensor in self.others]
        return [(tensor.float() - self.base.float()).double() for tensor in self.others]

    def added_to_base(
        self, value: Tensor, scale: Tensor, undecided: Tensor | None = None
    ) -> ReferenceResult:
        shape = self.inputs[0].shape
        value, scale = value.view(shape), scale.view(shape)
        if self.base is None:
            return ReferenceResult(value, scale, undecided)
        return ReferenceResult(
            self.base.double() + value, self.base.double().abs() + scale, undecided
        )


def has_reference(method: Method) -> bool:
    """Whether there is a reference implementation for ``method``."""
    return method.name in _FORMULAS and type(method).__module__.startswith(
        "mergeloom.methods.catalog."
    )


def evaluate(method: str, merge: TensorMerge, inputs: Sequence[Tensor]) -> ReferenceResult | None:
    """The result of ``method`` for ``inputs``; ``None`` if there is no reference for it."""
    if len(inputs) == 1 and (method != "passthrough" or not merge.models[0]):
        value = inputs[0].double()
        return ReferenceResult(value, torch.zeros_like(value))
    formula = _FORMULAS.get(method)
    return None if formula is None else formula(Problem(merge, inputs))


def mismatches(output: Tensor, expected: ReferenceResult) -> Tensor:
    """Mask of the elements of ``output`` that differ from the expected result rounded to its dtype.

    The tolerance is half a unit in the last place, plus `NOISE` times the added magnitudes.
    """
    found = output.double()
    noise = expected.scale * NOISE + 1e-42  # float32 products underflow below
    tolerance = noise
    info = torch.finfo(output.dtype)
    if output.dtype not in (torch.float32, torch.float64):
        exponent = torch.floor(torch.log2((expected.value.abs() + noise).clamp_min(info.tiny)))
        tolerance = noise + torch.exp2(exponent) * info.eps * 0.5000001
    wrong = (found - expected.value).abs() > tolerance
    wrong &= expected.value.abs() + noise < info.max  # above, it may be infinite
    wrong |= torch.isnan(found) != torch.isnan(expected.value)
    if expected.undecided is not None:
        wrong &= ~expected.undecided
    return wrong


# --- combinations of whole tensors ---------------------------------------------------------------


def _passthrough(p: Problem) -> ReferenceResult:
    scale = p.merge.models[0].get("scale")
    value = p.inputs[0].double() * (1.0 if scale is None else scale)
    return ReferenceResult(value, value.abs())


def _linear(p: Problem) -> ReferenceResult:
    weights = [model["weight"] for model in p.merge.models]
    divisor = sum(weights) if p.merge.settings["normalize"] else 1.0
    value = torch.zeros_like(p.inputs[0], dtype=torch.float64)
    scale = torch.zeros_like(value)
    for weight, tensor in zip(weights, p.inputs, strict=True):
        term = weight / divisor * tensor.double()
        value += term
        scale += term.abs()
    return ReferenceResult(value, scale)


def _slerp(p: Problem) -> ReferenceResult:
    a, b = p.required_base.double(), p.others[0].double()
    t = p.setting("t")
    if t in (0.0, 1.0):
        chosen = a if t == 0 else b
        return ReferenceResult(chosen, chosen.abs())
    lengths = float(a.norm()), float(b.norm())
    units = [v / n if n > 1e-8 else v for v, n in zip((a, b), lengths, strict=True)]
    cosine = max(-1.0, min(1.0, float((units[0] * units[1]).sum())))
    x, y = 1 - t, t
    if abs(cosine) <= 0.9995:
        omega = math.acos(cosine)
        x, y = math.sin(x * omega) / math.sin(omega), math.sin(y * omega) / math.sin(omega)
    return ReferenceResult(x * a + y * b, (x * a).abs() + (y * b).abs())


def _nuslerp(p: Problem) -> ReferenceResult:
    if len(p.others) == 1:  # only one model besides the base: nothing to interpolate with
        return ReferenceResult(p.others[0].double(), p.others[0].double().abs())
    vectors = p.vectors()
    along = 0
    if p.merge.settings["nuslerp_flatten"] or vectors[0].dim() < 2:
        vectors = [v.reshape(-1) for v in vectors]
    elif not p.merge.settings["nuslerp_row_wise"]:
        along = -1
    a, b = vectors
    first, second = p.of_models("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)

    def unit(v: Tensor) -> Tensor:
        norm = v.norm(dim=along, keepdim=True)
        return torch.where(norm > 1e-8, v / norm, 0.0)

    cosine = (unit(a) * unit(b)).sum(along, keepdim=True).clamp(-1, 1)
    omega = torch.acos(cosine)
    straight = omega.sin() < 1e-8
    x = torch.where(straight, 1 - t, ((1 - t) * omega).sin() / omega.sin())
    y = torch.where(straight, t, (t * omega).sin() / omega.sin())
    scale = (x * a).abs() + (y * b).abs()
    # Near opposite directions the plane of the arc depends on rounding, whatever the algorithm.
    return p.added_to_base(x * a + y * b, scale / (1 + cosine).clamp(1e-6, 1))


def _multislerp(p: Problem) -> ReferenceResult:
    vectors, weights, eps = p.vectors(), p.of_models("weight"), p.setting("eps")
    if p.merge.settings["normalize_weights"]:
        weights = tuple(weight / sum(weights) for weight in weights)
    lengths = [float(v.norm()) for v in vectors]
    directed = [
        w * v / n if n > min(eps, 1e-8) else v * 0
        for w, v, n in zip(weights, vectors, lengths, strict=True)
    ]
    mean = torch.stack(directed).sum(0)
    spread = float(mean.norm())
    length = sum(w * n for w, n in zip(weights, lengths, strict=True))
    if spread < max(eps, 1e-7):
        parts = torch.stack(vectors)
        parts *= torch.tensor(weights).double().view(-1, *[1] * vectors[0].dim())
        parts /= sum(weights) or 1.0
        return p.added_to_base(parts.sum(0), parts.abs().sum(0))
    scale = torch.stack(directed).abs().sum(0) * abs(length) / spread
    return p.added_to_base(mean / spread * length, scale)


def _karcher(p: Problem) -> ReferenceResult:
    vectors = [tensor.double() for tensor in p.inputs]
    lengths = [float(v.norm()) for v in vectors]
    units = [v / n for v, n in zip(vectors, lengths, strict=True) if n > 1e-8]
    if not units:
        return ReferenceResult(vectors[0] * 0, vectors[0] * 0)
    mean = torch.stack(units).mean(0)
    left = float(mean.norm())
    mean = mean / left if left > 1e-7 else units[0]
    for _ in range(int(p.setting("max_iter"))):
        tangent = torch.zeros_like(mean)
        for unit in units:
            along = max(-1.0, min(1.0, float((unit * mean).sum())))
            angle = math.acos(along)
            if math.sin(angle) >= 1e-7:
                tangent += angle / math.sin(angle) * (unit - along * mean) / len(units)
        step = float(tangent.norm())
        if step <= p.setting("tol"):
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
    length = sum(lengths) / len(lengths)
    scale = torch.stack(units).abs().sum(0) * length
    # Nearly opposite directions cancel, and the small remainder is scaled up.
    return ReferenceResult(mean * length, scale * max(1.0, 1 / (len(units) * max(left, 1e-7))))


def _model_stock(p: Problem) -> ReferenceResult:
    taus = p.vectors()
    width = taus[0].shape[-1] if taus[0].dim() else 1
    rows = [t.reshape(-1, width if p.merge.settings["filter_wise"] else t.numel()) for t in taus]
    norms = [row.norm(dim=1, keepdim=True) for row in rows]
    cosines = [
        torch.where(
            (norms[i] > 1e-8) & (norms[j] > 1e-8),
            (rows[i] * rows[j]).sum(1, keepdim=True) / norms[i] / norms[j],
            0.0,
        )
        for i in range(len(rows))
        for j in range(i)
    ]
    mean = torch.stack(cosines).mean(0)
    denominator = 1 + (len(rows) - 1) * mean
    t = torch.where(denominator.abs() < 1e-8, 0.0, len(rows) * mean / denominator)
    total = torch.stack(rows).sum(0) / len(rows) * t
    scale = torch.stack(rows).abs().sum(0) * t.abs().clamp_min(1) / denominator.abs().clamp(1e-6, 1)
    return p.added_to_base(total, scale)


# --- task vectors --------------------------------------------------------------------------------


def largest(vector: Tensor, keep: int) -> Tensor:
    """Mask of the ``keep`` largest magnitudes; of equal ones, those of the lowest indices."""
    order = torch.sort(-vector.abs().reshape(-1), stable=True).indices
    mask = torch.zeros(vector.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view(vector.shape)


def _rescaled(p: Problem, number: int, vector: Tensor, kept: Tensor) -> Tensor:
    density = p.of_models("density")[number]
    if not p.merge.settings["rescale"] or not 0 < density < 1:
        return kept
    before, after = float(vector.abs().sum()), float(kept.abs().sum())
    return kept * (before / after) if before >= 1e-7 and after >= 1e-7 else kept


def _sum(p: Problem, sparse: Sequence[Tensor]) -> ReferenceResult:
    weights, factor = p.of_models("weight"), p.setting("lambda")
    divisor = sum(weights) if p.merge.settings["normalize"] and any(weights) else 1.0
    terms = torch.stack([w * t for w, t in zip(weights, sparse, strict=True)])
    return p.added_to_base(
        factor * terms.sum(0) / divisor, abs(factor / divisor) * terms.abs().sum(0)
    )


def _elected(p: Problem, sparse: Sequence[Tensor]) -> ReferenceResult:
    weights, factor = p.of_models("weight"), p.setting("lambda")
    shape = (-1, *[1] * sparse[0].dim())
    weight = torch.tensor(weights, dtype=torch.float64).view(shape)
    ballots = torch.stack(list(sparse)) * weight
    sign = torch.where(ballots.sum(0) >= 0, 1.0, -1.0)
    agrees = (ballots.sign() == sign).double()
    total = (ballots * agrees).sum(0)
    scale = ballots.abs().sum(0)
    if p.merge.settings["normalize"]:
        divisor = (weight * agrees).sum(0)
        divisor = torch.where(divisor.abs() <= 1e-8, 1.0, divisor)
        total = total / divisor
        scale = scale / divisor.abs().clamp_max(1.0)
    mass = ballots.abs().sum(0)
    undecided = (ballots.sum(0).abs() <= 1e-5 * mass) & (mass > 0)
    return p.added_to_base(factor * total, abs(factor) * scale, undecided)


def _task_arithmetic(p: Problem) -> ReferenceResult:
    return _sum(p, p.vectors())


def _ties(p: Problem) -> ReferenceResult:
    sparse = []
    for number, vector in enumerate(p.vectors()):
        density = p.of_models("density")[number]
        keep = vector.numel() if density >= 1 else int(density * vector.numel())
        keep = max(keep, int(density > 0))
        sparse.append(_rescaled(p, number, vector, vector * largest(vector, keep)))
    return _elected(p, sparse)


def _breadcrumbs(
    p: Problem, combine: Callable[[Problem, Sequence[Tensor]], ReferenceResult]
) -> ReferenceResult:
    sparse = []
    for number, vector in enumerate(p.vectors()):
        density, gamma = p.of_models("density")[number], p.of_models("gamma")[number]
        kept, total = vector, vector.numel()
        if density < 1:
            keep = int(density * total)
            skip = min(int(gamma * total), total - keep)
            kept = vector * (largest(vector, skip + keep) & ~largest(vector, skip))
        sparse.append(_rescaled(p, number, vector, kept))
    return combine(p, sparse)


def _dare(
    p: Problem, combine: Callable[[Problem, Sequence[Tensor]], ReferenceResult]
) -> ReferenceResult:
    sparse = []
    for number, vector in enumerate(p.vectors()):
        density = p.of_models("density")[number]
        kept = vector if density >= 1 else vector * (_chances(p, number) < density)
        sparse.append(_rescaled(p, number, vector, kept))
    return combine(p, sparse)


def _della(
    p: Problem, combine: Callable[[Problem, Sequence[Tensor]], ReferenceResult]
) -> ReferenceResult:
    sparse = []
    for number, vector in enumerate(p.vectors()):
        density, epsilon = p.of_models("density")[number], p.of_models("epsilon")[number]
        kept = vector * (density > 0)
        if 0 < density < 1:
            rows = vector.reshape(-1, vector.shape[-1] if vector.dim() else 1)
            order = torch.sort(-rows.abs(), dim=1, stable=True).indices
            last = rows.shape[1] - 1
            ranks = torch.arange(last + 1, dtype=torch.float64).expand_as(rows)
            spread = 1 - 2 * ranks / last if last else torch.zeros_like(ranks)
            chances = torch.empty_like(rows).scatter_(1, order, density + epsilon * spread)
            kept = vector * (_chances(p, number) < chances.view(vector.shape))
        sparse.append(_rescaled(p, number, vector, kept))
    return combine(p, sparse)


def _chances(p: Problem, number: int) -> Tensor:
    return drawn(p.merge.seed, p.merge.tensor, number, p.inputs[0].shape)


def drawn(seed: int, tensor: str, number: int, shape: Sequence[int]) -> Tensor:
    """The random numbers for task vector ``number`` of a tensor, by the definition of the generator
    in integers: uniform in [0, 1), multiples of 2⁻³²."""
    word = 1 << 32
    key = _digest(seed, number, tensor)
    index = torch.arange(math.prod(shape), dtype=torch.int64)
    result = torch.empty(index.shape, dtype=torch.float64)
    for high in range(-(-math.prod(shape) // word)):
        first, second = divmod(_digest(key, high), word)
        part = slice(high * word, (high + 1) * word)
        x = (first + _times(index[part] % word, 0x9E3779B1)) % word
        x = _times(x ^ (x >> 16), 0x21F0AAAD) ^ second
        x = _times(x ^ (x >> 15), 0xD35A2D97)
        result[part] = ((x + word // 2) % word).double() / word
    return result.view(tuple(shape))


def _times(x: Tensor, factor: int) -> Tensor:
    """x · factor modulo 2³², in parts that fit into 64-bit integers."""
    low, high = factor & 0xFFFF, factor >> 16
    return (x * low + ((x * high) % (1 << 16) << 16)) % (1 << 32)


def _digest(*parts: object) -> int:
    content = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def variance(p: Problem) -> Tensor:
    """Sum of the squared deviations of task vectors from their mean, in float32, by which SCE ranks
    elements; relative to the first, so that equal ones have none."""
    first, *_ = taus = [tau.float() for tau in p.vectors()]
    taus = [tau - first for tau in taus]
    mean = torch.zeros_like(taus[0])
    for tau in taus:
        mean = mean + tau
    mean = mean / len(taus)
    total = torch.zeros_like(mean)
    for tau in taus:
        total = total + (tau - mean) * (tau - mean)
    return total


def _sce(p: Problem) -> ReferenceResult:
    taus, share = p.vectors(), p.setting("select_topk")
    if share == 0:
        return p.added_to_base(taus[0] * 0, taus[0] * 0)
    if share < 1:
        spread = variance(p)
        mask = largest(spread, int(int((spread != 0).sum()) * share))
        taus = [tau * mask for tau in taus]
    return fused(p, taus)


def fused(p: Problem, taus: Sequence[Tensor], *, even: bool = False) -> ReferenceResult:
    """The result of SCE for selected elements of task vectors; ``even`` gives all models the same
    weight."""
    squares = [float(tau.square().sum()) for tau in taus]
    total_square = 0.0 if even else sum(squares)
    weights = [s / total_square for s in squares] if total_square else [1.0] * len(taus)
    vectors = torch.stack(list(taus))
    total, mass = vectors.sum(0), vectors.abs().sum(0)
    sign = torch.where(total >= 0, 1.0, -1.0)
    weight = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * taus[0].dim())
    agrees = (vectors.sign() == sign).double() * weight
    divisor = agrees.sum(0)
    value = torch.where(divisor > 0, (vectors * agrees).sum(0) / divisor, 0.0)
    undecided = (total.abs() <= 1e-5 * mass) & (mass > 0)
    return p.added_to_base(value, vectors.abs().amax(0) * 4, undecided)


# --- elements changed by one or several models ---------------------------------------------------


def _ram(p: Problem, r: float = 0.0, alpha: float = 0.0) -> ReferenceResult:
    limit = float(torch.tensor(p.setting("epsilon"), dtype=torch.float32))
    taus = torch.stack([torch.where(tau.abs() > limit, tau, 0.0) for tau in p.vectors()])
    by = (taus != 0).sum(0)
    value = taus.sum(0) / by.clamp_min(1)
    for tau in taus:
        unique, shared = int((by == 1)[tau != 0].sum()), int((by > 1)[tau != 0].sum())
        value = value + tau * (by == 1) * r * min(shared / max(unique, 1), alpha)
    return p.added_to_base(value, taus.abs().sum(0) * (1 + 2 * abs(r) * alpha))


def _ramplus(p: Problem) -> ReferenceResult:
    return _ram(p, p.setting("r"), p.setting("alpha"))


def _nearswap(p: Problem) -> ReferenceResult:
    a, b = p.required_base.double(), p.others[0].double()
    distance = (a - b).abs()
    w = torch.where(distance > 0, p.setting("t") / distance, 1.0).clamp(0, 1)
    return ReferenceResult(w * b + (1 - w) * a, a.abs() + b.abs())


def _arcee_fusion(p: Problem) -> ReferenceResult:
    width = p.required_base.shape[-1] if p.required_base.dim() else 1
    a, b = (t.double().reshape(-1, width) for t in (p.required_base, p.others[0]))
    ours, theirs = b.log_softmax(1), a.log_softmax(1)
    divergence = (ours.exp() * (ours - theirs)).sum(1, keepdim=True).clamp_min(0)
    score = ((b - a).abs() * divergence).reshape(-1)
    order = score.sort().values
    low, middle, high = (float(order[int(share * (len(order) - 1))]) for share in (0.25, 0.5, 0.75))
    limit = middle + 1.5 * (high - low)
    shape = p.required_base.shape
    chosen = torch.where(score.view(shape) >= limit, b.view(shape), a.view(shape))
    # Scores are differences of logarithms of magnitude up to hundreds, each exact to about 1e-16.
    doubt = 1e-6 * abs(limit) + 1e-12 * float((b - a).abs().max()) * (1 + float(b.abs().max()))
    undecided = ((score - limit).abs() <= doubt).view(shape)
    return ReferenceResult(chosen, torch.zeros_like(chosen), undecided)


ELEMENTWISE = frozenset(("linear", "nearswap", "passthrough", "task_arithmetic"))
"""Methods whose result at an element depends only on that element of the inputs."""

_FORMULAS: dict[str, Callable[[Problem], ReferenceResult]] = {
    "arcee_fusion": _arcee_fusion,
    "breadcrumbs": lambda p: _breadcrumbs(p, _sum),
    "breadcrumbs_ties": lambda p: _breadcrumbs(p, _elected),
    "dare_linear": lambda p: _dare(p, _sum),
    "dare_ties": lambda p: _dare(p, _elected),
    "della": lambda p: _della(p, _elected),
    "della_linear": lambda p: _della(p, _sum),
    "karcher": _karcher,
    "linear": _linear,
    "model_stock": _model_stock,
    "multislerp": _multislerp,
    "nearswap": _nearswap,
    "nuslerp": _nuslerp,
    "passthrough": _passthrough,
    "ram": _ram,
    "ramplus_tl": _ramplus,
    "sce": _sce,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
}
