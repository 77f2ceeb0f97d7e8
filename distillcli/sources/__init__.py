"""Data sets: where images and labels come from. Nothing in here imports torch."""
