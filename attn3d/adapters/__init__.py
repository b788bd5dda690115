"""Adapters to other libraries. Each file imports the library that it adapts to."""
