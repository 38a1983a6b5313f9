"""Loops over plain memory, as numba compiles them.

`methods.ops.loops.build` makes machine code of them, in a process of its own; a merge loads that
(`engine.hardware.machine_code`) and never numba. So a loop takes numbers and addresses of memory
only, allocates nothing, and works in memory that it is given: `methods.ops.loops.sizes.work_bytes`.
"""
