"""The stages of the pipeline: the task of each, and the runner that executes them."""
