"""Output files: shards, config.json, and others."""
