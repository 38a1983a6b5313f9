"""Rows of tokens that a model lacks, made of its own rows by what another model knows of them."""
