"""Reading a configuration: YAML values with file and line, models, parameters."""
