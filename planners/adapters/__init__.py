"""Planning of adapters combined into one adapter."""
