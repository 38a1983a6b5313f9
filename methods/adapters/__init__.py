"""How adapters are combined into one: by their factors, or by the changes that they make."""
