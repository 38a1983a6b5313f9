"""The task graph: loads, gathers, merges, writes, and the kernel protocol."""
