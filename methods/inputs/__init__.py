"""Kernels that make the values of an input before it is merged: adapters added, codes dequantised,
rows filled in, matrices transposed."""
