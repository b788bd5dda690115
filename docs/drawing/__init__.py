"""The figures of the mechanisms, in one visual language."""
