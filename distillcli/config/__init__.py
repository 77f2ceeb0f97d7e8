"""Typed configs, composed by Hydra and checked before anything heavy is imported. Nothing in here imports torch."""
