"""The training loop and what surrounds it: setup, progress, meters, run folder, evaluation."""
