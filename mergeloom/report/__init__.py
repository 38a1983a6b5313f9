"""What is shown: documents, terminal text, progress, units."""
