"""Task arithmetic: the base plus weighted task vectors."""

from __future__ import annotations

from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, TensorMerge
from mergeloom.methods.kernels.sparsifier import KeepAll
from mergeloom.methods.kernels.task_vectors import merge_task_vectors
from mergeloom.methods.shared_parameters import INT8_MASK, LAMBDA, WEIGHT, normalize


class TaskArithmetic(Method):
    name = "task_arithmetic"
    summary = (
        "Adds a weighted sum of task vectors (what each fine-tune changed) to the base. A negative "
        "weight makes the model forget a task."
    )
    formula = "θ = θ₀ + λ Σ wᵢτᵢ,  τᵢ = θᵢ - θ₀   (normalize: divided by Σ wᵢ)"
    reference = "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089"
    works = "element by element, no statistics"
    by_name = False
    model_parameters = (WEIGHT,)
    settings = (normalize(False), LAMBDA, INT8_MASK)
    base = Base.REQUIRED
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        nothing_dropped = [False] * len(merge.others)
        return merge_task_vectors(merge, nothing_dropped, lambda kept: KeepAll(), elect=False)
