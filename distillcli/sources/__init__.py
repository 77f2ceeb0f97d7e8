"""Data sets: where images and labels come from. No module here imports torch when it is loaded."""
