"""Storage: sources, files, file formats and digests."""
