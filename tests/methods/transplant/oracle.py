"""Plain float64 ways to make rows, for comparison: (rows, width) arrays of numpy throughout."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pursuit(targets: Array, atoms: Array, twins: Array, most: int, usable: Array) -> Array:
    """Textbook orthogonal matching pursuit, with least squares by QR in each turn."""
    made = []
    for target in targets:
        chosen: list[int] = []
        left, fitted = target, np.zeros(0)
        for _ in range(most):
            scores = np.abs(atoms @ left)
            scores[~usable] = -1.0
            scores[chosen] = -1.0
            chosen.append(int(scores.argmax()))
            fitted = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
            left = target - fitted @ atoms[chosen]
        made.append(fitted @ twins[chosen])
    return np.stack(made)


def interpolation(
    targets: Array, atoms: Array, twins: Array, most: int, cosine: bool, scheme: str
) -> Array:
    """A weighted sum over the nearest."""
    made = []
    for target in targets:
        distances = np.linalg.norm(atoms - target, axis=1)
        cosines = atoms @ target / np.linalg.norm(atoms, axis=1) / np.linalg.norm(target)
        order = np.argsort(-cosines if cosine else distances, kind="stable")[:most]
        near = atoms[order]
        if scheme == "distance":
            weights = np.maximum(cosines[order], 0) if cosine else 1 / distances[order]
            weights = weights / weights.sum()
        elif scheme == "least_squares":
            weights = np.linalg.lstsq(near.T, target, rcond=None)[0]
        else:  # the last weight is 1 minus the others
            others = np.linalg.lstsq((near[:-1] - near[-1]).T, target - near[-1], rcond=None)[0]
            weights = np.append(others, 1 - others.sum())
        made.append(weights @ twins[order])
    return np.stack(made)


def landmarks(targets: Array, atoms: Array, twins: Array) -> Array:
    """Principal axes by SVD of the points themselves, then the best rotation."""
    mean, twin_mean = atoms.mean(0), twins.mean(0)
    least = min(atoms.shape[1], twins.shape[1])
    axes = np.linalg.svd(atoms - mean, full_matrices=False)[2][:least].T
    twin_axes = np.linalg.svd(twins - twin_mean, full_matrices=False)[2][:least].T
    left, _, right = np.linalg.svd(((atoms - mean) @ axes).T @ ((twins - twin_mean) @ twin_axes))
    made: Array = (targets - mean) @ axes @ left @ right @ twin_axes.T + twin_mean
    return made
