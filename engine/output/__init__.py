"""The output directory: shards, side files, journal, manifest, verification."""
