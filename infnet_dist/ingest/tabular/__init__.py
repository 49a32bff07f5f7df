"""Parquet tables that are already split: converted to a training set without histories."""
