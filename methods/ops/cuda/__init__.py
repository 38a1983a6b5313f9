"""Arithmetic on NVIDIA GPUs by our own CUDA code, without torch."""
