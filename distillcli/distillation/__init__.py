"""One distillation from a config to a finished run folder: the teacher, the fits, and what is reused."""
