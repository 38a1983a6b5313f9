"""Vocabularies: reading, comparing, uniting and writing tokenizers, and aligning rows to them."""
