"""GGUF files as models: names, configuration and tokenizer as transformers has them."""
