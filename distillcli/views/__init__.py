"""Batches of augmented views on the device, pure functions of (seed, view, index)."""
