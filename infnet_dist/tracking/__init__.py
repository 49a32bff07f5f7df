"""Metrics to W&B and metrics.jsonl."""
