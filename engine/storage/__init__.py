"""Bytes outside of memory: files, their formats and digests."""
