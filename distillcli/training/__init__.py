"""One loop for teacher, student and control, and what it measures."""
