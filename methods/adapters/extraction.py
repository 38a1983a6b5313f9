"""The low-rank factors of what fine-tuning changed in a weight."""

from __future__ import annotations

from mergeloom.methods.declare import Base, Method


class Extraction(Method):
    """For descriptions: the kernel is `methods.kernels.leading_factors.LeadingOfDifference`."""

    name = "extract"
    summary = "Low-rank factors of the difference to the base model."
    formula = "B·A, the closest matrix of the chosen rank to θ - θ_base; B = U·√S, A = √S·Vᵀ"
    reference = "Eckart and Young 1936; Hu et al. 2021, LoRA, arXiv:2106.09685"
    base = Base.REQUIRED
    merges_one = True


EXTRACTION = Extraction()
