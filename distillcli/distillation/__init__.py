"""One distillation from a config to a finished run folder: who teaches, what is fitted, what is found again."""
