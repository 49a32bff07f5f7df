"""The training loop with its setup, progress, meters, run folder and evaluation."""
