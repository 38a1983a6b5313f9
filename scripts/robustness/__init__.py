"""Tests of robustness: kills, failing calls, power loss and malicious files."""
