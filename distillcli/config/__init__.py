"""Typed configs, composed by Hydra and checked before anything heavy is imported. No module here imports torch."""
