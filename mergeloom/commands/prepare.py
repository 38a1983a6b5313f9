"""``mergeloom prepare``: compile all machine code in advance."""

from __future__ import annotations

from mergeloom.printer import announce_building


def prepare() -> None:
    """Compile the machine code for merges, once for this machine; takes a minute or two.

    Otherwise the first merge that needs a function compiles it, which takes several hundred
    megabytes.
    """
    from mergeloom.engine.hardware import process
    from mergeloom.methods.ops.arithmetic import FUNCTIONS, cpu_arithmetic
    from mergeloom.methods.ops.cuda.arithmetic import prepare_code

    for device in process.devices():
        if device.kind == "cuda":
            prepare_code(int(device.name.partition(":")[2]))
            print(f"machine code is ready for {device.name} ({device.title})")
    arithmetic = cpu_arithmetic()
    if arithmetic.uses_torch:
        print(f"the CPU computes with {arithmetic.name}, which needs no machine code")
        return
    missing = arithmetic.missing(FUNCTIONS)
    if missing:
        announce_building(missing)
        arithmetic.build(missing)
    print(f"machine code is ready: {len(FUNCTIONS)} functions, {len(missing)} of them new")
