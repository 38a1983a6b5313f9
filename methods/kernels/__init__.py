"""The kernels that methods are built from."""
