"""Definitions shared by the whole engine: dtypes, grains, units, errors."""
