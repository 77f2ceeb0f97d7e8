"""Run folders: the files a run leaves behind. Nothing in here imports torch."""
