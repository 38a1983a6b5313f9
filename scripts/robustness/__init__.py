"""Kills, faults, power loss, hostile files."""
