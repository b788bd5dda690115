"""What `examples/benchmark.py` measures, a file for each subject."""
