"""The task graph: loads, gathers, merges, writes, and the protocol of kernels."""
