"""The configuration as it is written: YAML values with their places, models, parameters."""
