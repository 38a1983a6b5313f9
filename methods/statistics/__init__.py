"""Statistics that kernels compute in passes before the output pass."""
