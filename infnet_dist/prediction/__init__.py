"""Predictions: a checkpoint and a file of prepared rows -> Parquet with a score per task."""
