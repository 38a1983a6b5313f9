"""Scheduling, without I/O: order, tiles, devices, memory."""
