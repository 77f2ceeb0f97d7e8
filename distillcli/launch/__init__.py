"""From the arguments of a command to its jobs. Nothing in here imports torch."""
