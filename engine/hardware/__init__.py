"""What the machine has: memory, devices, machine code, measured rates."""
