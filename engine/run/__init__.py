"""Carrying out a schedule: readers, workers, writers."""
