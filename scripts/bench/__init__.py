"""Measuring time and memory, beside mergekit and beside raw reading and writing."""
