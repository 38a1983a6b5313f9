"""The kernels that methods are made of."""
