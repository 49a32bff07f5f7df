"""Builds, shards and initialises the model under a plan, with its optimizers."""
