"""From the arguments of a command to its jobs. No module here imports torch."""
