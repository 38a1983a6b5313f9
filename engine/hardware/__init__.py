"""The machine: memory, devices, machine code."""
