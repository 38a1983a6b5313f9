"""Transplants a tokenizer: which tokens two models share, and how the other rows are computed."""
