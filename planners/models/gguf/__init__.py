"""GGUF files as models, with the names, configuration and tokenizer of transformers."""
