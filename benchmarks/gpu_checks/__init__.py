"""The checks of `benchmarks/gpu_check.py`."""
