"""The machine: memory, devices, machine code, measured rates."""
