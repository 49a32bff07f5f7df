"""Logs with a planted truth, so that the best reachable AUC is known."""

from infnet_dist.ingest.synthetic.generate import make_training_set

__all__ = ["make_training_set"]
