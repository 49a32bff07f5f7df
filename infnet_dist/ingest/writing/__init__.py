"""Writes training sets: Parquet parts, then the manifest, published by one rename."""
