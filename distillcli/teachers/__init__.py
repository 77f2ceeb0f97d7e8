"""Frozen models that answer a batch, live or from the cache."""
