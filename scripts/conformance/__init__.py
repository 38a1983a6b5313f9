"""Comparison of results with mergekit and with a float64 reference."""
