"""A trained model as files that are used without this package: written, opened again, and compared."""
