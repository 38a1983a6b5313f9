"""Loops for what torch can only do in many passes over memory, as numba compiles them.

Each gives bit for bit what the torch operations that it stands for give: the same roundings in the
same order. `methods.ops.loops.build` makes machine code of them, in a process of its own; who
merges loads that (`engine.hardware.machine_code`) and never numba. So a loop takes numbers and
addresses of memory only, allocates nothing, and works in memory that it is given
(`methods.ops.loops.sizes.work_bytes`).
"""
