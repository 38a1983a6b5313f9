"""Arithmetic on NVIDIA's devices by machine code of our own, without torch."""
