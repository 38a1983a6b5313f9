"""Ways to combine adapters into one: by their factors, or by the changes they make."""
