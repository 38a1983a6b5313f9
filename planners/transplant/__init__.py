"""A model with the tokenizer of another: what they share, and how rows of all else are made."""
