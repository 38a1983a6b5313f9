"""Kernels that compute the values of an input before it is merged: add an adapter, dequantise,
fill in rows, transpose matrices."""
