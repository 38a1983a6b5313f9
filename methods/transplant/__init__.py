"""Rows for tokens that a model lacks, computed from its own rows with the help of another model."""
