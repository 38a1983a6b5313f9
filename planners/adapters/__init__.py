"""Adapters combined with each other into one adapter."""
