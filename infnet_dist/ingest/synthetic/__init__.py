"""Synthetic logs with known click probabilities, so that the optimal AUC is known."""

from infnet_dist.ingest.synthetic.generate import make_training_set

__all__ = ["make_training_set"]
