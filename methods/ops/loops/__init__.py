"""The loops of the compiled arithmetic, written for numba.

`methods.ops.loops.build` compiles them to machine code in a separate process; a merge loads only
the machine code (`engine.hardware.machine_code`), never numba. Therefore a loop takes only numbers
and memory addresses, and allocates nothing: the caller passes working memory (``work``), whose size
is in `methods.ops.loops.sizes`.
"""
