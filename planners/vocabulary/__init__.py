"""Vocabularies: tokenizers read, compared, united and written; rows of models brought to them."""
