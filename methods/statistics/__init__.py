"""Statistics that kernels gather in passes before the output pass."""
