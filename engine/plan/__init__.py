"""What will be done, decided without input or output: order, tiles, devices, memory."""
