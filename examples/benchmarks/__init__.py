"""The subjects of `examples/benchmark.py`, one file for each."""
