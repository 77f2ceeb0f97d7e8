"""What a person sees of a run: the console, pictures, tables and reports. Nothing in here imports torch."""
