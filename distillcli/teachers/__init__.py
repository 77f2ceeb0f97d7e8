"""Frozen teachers, run live or read from the cache."""
