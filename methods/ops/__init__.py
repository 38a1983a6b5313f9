"""Arithmetic: compiled machine code on the CPU, torch on devices."""
