"""Export of models to the format of other programs: GGUF."""
