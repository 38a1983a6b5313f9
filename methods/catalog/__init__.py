"""The merge methods, one file per method or family of methods."""
