"""Benchmarks of time and memory, compared with mergekit and with raw I/O."""
